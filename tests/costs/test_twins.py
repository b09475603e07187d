"""Models that a checkpoint is compared with."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from tiny import batch, build, logits, tiny_model

from rankwise.adapters.attach import ADAPTER, adapted_layers, find_matrices
from rankwise.adapters.fused import FusedLinear
from rankwise.costs.flops import count_flops
from rankwise.costs.twins import UNMERGEABLE, lora_twin, merged, shared_copy, use_fused, use_stock


def test_copies_share_weights_and_nothing_else():
    model = tiny_model()
    other = shared_copy(model)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    lora_twin(other, dict.fromkeys(find_matrices(other), 2))
    assert not any(isinstance(module, Linear) for module in model.modules())


def test_twin_has_the_ranks_that_were_asked_for():
    base = tiny_model()
    names = list(find_matrices(base))
    ranks = {name: i % 4 for i, name in enumerate(names)}
    twin = lora_twin(base, ranks)
    assert {name: layer.r[ADAPTER] for name, layer in adapted_layers(twin).items()} == {
        name: rank for name, rank in ranks.items() if rank
    }
    assert not twin.training


def test_stock_and_fused_and_merged_say_the_same():
    base = tiny_model()
    twin = lora_twin(shared_copy(base), dict.fromkeys(find_matrices(base), 3))
    use_fused(twin)()
    assert {type(layer) for layer in adapted_layers(twin).values()} == {FusedLinear}
    fused = logits(twin)
    use_stock(twin)()
    assert {type(layer) for layer in adapted_layers(twin).values()} == {Linear}
    stock, whole = logits(twin), merged(twin)
    torch.testing.assert_close(fused, stock, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(logits(whole), stock, atol=1e-6, rtol=1e-5)
    assert not torch.equal(stock, logits(base))
    assert not any(isinstance(module, Linear) for module in whole.modules())
    inputs = batch()
    del inputs["labels"]
    assert count_flops(whole, [inputs]) == count_flops(base, [inputs])


def test_merging_leaves_the_model_alone_and_gated_adapters_cannot():
    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["query"], init_lora_weights=False)).eval()
    before = logits(model)
    merged(model)
    assert torch.equal(logits(model), before)
    with pytest.raises(UNMERGEABLE, match="decide per input"):
        merged(build("cogalora", budget="r=8").model)
