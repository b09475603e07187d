"""What adapters that decide per input cost in inference, against LoRA of the same ranks.

    python benchmarks/conditional.py --output benchmarks/results/conditional.json

CoGaLoRA with a share of its gates open (20 % unless said otherwise) runs in turn with the frozen base model and with
LoRA of the same ranks, unmerged (PEFT's forward pass and this package's fused one) and merged: in one process, in a new
random order each round (see `rankwise.costs.latency`). Routers are real: their weights are random, and the bias of each
is set so that just that share of the inputs opens its gate. FLOPs are counted as executed.

Models: `minilm` (embedded weights) and `bert` (the width of BERT-base with random weights, `--layers` blocks). The
hypernetwork of the research record is only counted, on the meta device: it would not fit in memory.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rankwise.adapters.attach import ADAPTER, adapted_layers, attach_lora, find_matrices
from rankwise.adapters.conditional import CogaloraPeftConfig
from rankwise.adapters.conditional.context import context_of
from rankwise.adapters.conditional.router import Router
from rankwise.adapters.conditional.tuner import ROUTER
from rankwise.costs.activity import observe
from rankwise.costs.claims import BERT_BLOCKS, BERT_WIDTH
from rankwise.costs.flops import count_flops
from rankwise.costs.formulas import bert_block
from rankwise.costs.latency import Times, Variant, measure
from rankwise.costs.parameters import parameters_of
from rankwise.costs.twins import lora_twin, merged, shared_copy, use_fused, use_stock
from rankwise.experiments.environment import machine, versions

POOL = 64
"""Examples; gates are set and FLOPs counted on all of them, batches are made of them."""
PASSES = 3
"""Times that biases are set: open gates change what later routers see."""
Settings = argparse.Namespace


def base_model(name: str, layers: int) -> nn.Module:
    """`minilm` with its weights, or `bert`: the width of BERT-base with random ones."""
    from transformers import BertConfig, BertForSequenceClassification

    from rankwise.training.models import load_base_model

    if name == "minilm":
        return load_base_model("minilm", num_labels=2, kind="classification", seed=0).model.eval()
    torch.manual_seed(0)
    config = BertConfig(vocab_size=4000, num_hidden_layers=layers, hidden_size=BERT_WIDTH)
    model: nn.Module = BertForSequenceClassification(config)
    return model.eval()


def cogalora(base: nn.Module, rank: int, router: str) -> PeftModel:
    """Gated adapters of `rank` on every linear layer of the blocks, with random factors and routers."""
    config = CogaloraPeftConfig(r=rank, lora_alpha=rank, router=router)
    model = attach_lora(base, find_matrices(base), config=config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            b = layer.lora_B[ADAPTER].weight
            b.copy_(torch.randn(b.shape, generator=generator) * 1e-3)
        for router_module in routers(model).values():
            router_module.up.copy_(torch.randn(router_module.up.shape, generator=generator))
    return model.eval()


def routers(model: PeftModel) -> dict[str, Router]:
    """By module."""
    layers = adapted_layers(model)
    return {name: getattr(layer, ROUTER)[ADAPTER] for name, layer in layers.items() if hasattr(layer, ROUTER)}


@torch.no_grad()
def open_share(model: PeftModel, batch: Mapping[str, Tensor], share: float) -> None:
    """Set the biases so that every gate is open for `share` of the examples."""
    context = context_of(model.base_model.model)
    context.recording = True
    for _ in range(PASSES):
        model(**batch)
        for name, router in routers(model).items():
            logits = router(context.seen[name, ADAPTER])
            router.up_bias.sub_(torch.quantile(logits, 1 - share, dim=0))
    context.recording = False
    context.seen.clear()


def batches_of(size: int, tokens: int, vocabulary: int) -> list[dict[str, Tensor]]:
    """The pool in batches of `size`, without padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocabulary, (POOL, tokens), generator=generator)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(size)]


def measure_model(name: str, options: Settings) -> dict[str, Any]:
    """Parameters, FLOPs and latencies of all variants of one model."""
    base = base_model(name, options.layers)
    ranks = dict.fromkeys(find_matrices(base), options.rank)
    lora = lora_twin(shared_copy(base), ranks)
    (pool,) = batches_of(POOL, options.tokens, 4000)
    gated = {f"cogalora_{router}": cogalora(shared_copy(base), options.rank, router) for router in ("module", "shared")}
    for model in gated.values():
        open_share(model, pool, options.active)
    variants = {
        "base": Variant(base),
        "lora": Variant(lora, use_stock(lora)),
        "lora_fused": Variant(lora, use_fused(lora)),
        "lora_merged": Variant(merged(lora)),
        **{key: Variant(model) for key, model in gated.items()},
    }
    counted = {"lora": lora, **gated}
    config: Any = base.config
    print(f"{name}: models are made, gates are set", file=sys.stderr)
    found: dict[str, Any] = {
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "parameters": {key: parameters_of(model).as_dict() for key, model in counted.items()},
        "flops": {key: executed(model, base, options.tokens) for key, model in counted.items()},
        "latency": {},
    }
    for size in options.batch_sizes:
        batches = batches_of(size, options.tokens, 4000)
        times = measure(variants, batches, options.rounds)
        found["latency"][str(size)] = {key: latency_row(times, key) for key in variants}
        print(f"{name}: batch size {size} is done", file=sys.stderr)
    return found


def executed(model: PeftModel, base: nn.Module, tokens: int) -> dict[str, float]:
    """FLOPs per example and how they compare."""
    batches = batches_of(8, tokens, 4000)
    flops, alone = count_flops(model, batches), count_flops(base, batches).total
    activity = observe(model, batches)
    return {
        "total": flops.total / POOL,
        "adapters": flops.adapters / POOL,
        "routing": flops.routing / POOL,
        "routing_share": flops.share("routing"),
        "adapter_share": flops.share("adapters"),
        "active": activity.share,
        "by_formula": activity.expected / POOL,
        "to_merged": flops.total / alone,
        "to_unmerged": flops.total / (alone + activity.all_open),
    }


def latency_row(times: Times, key: str) -> dict[str, Any]:
    """Milliseconds, and ratios with their quartiles."""
    references = ("lora", "lora_fused", "lora_merged")
    ratios = {f"to_{reference}": asdict(times.ratio(key, reference)) for reference in references}
    return {"p50_ms": times.percentile(key, 50) * 1e3, "p95_ms": times.percentile(key, 95) * 1e3, **ratios}


def hypernetwork(rank: int) -> dict[str, float]:
    """Parameters and FLOPs per example of the record's generators, at the size of BERT-base."""
    sizes = [(m.in_features, m.out_features) for m in bert_block(BERT_WIDTH)] * BERT_BLOCKS
    static = sum(rank * (a + b) for a, b in sizes)
    with torch.device("meta"):
        networks = [nn.Linear(BERT_WIDTH, rank * (a + b), bias=False) for a, b in sizes]
        seen = torch.empty(1, BERT_WIDTH)
    with FlopCounterMode(display=False) as counter:
        for network in networks:
            network(seen)
    parameters = sum(network.weight.numel() for network in networks)
    return {"parameters": parameters, "static": static, "flops_per_example": counter.get_total_flops()}


def sizes(text: str) -> list[int]:
    """`8,32`."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="minilm,bert", help="with commas")
    parser.add_argument("--layers", type=int, default=12, help="blocks of `bert`")
    parser.add_argument("--rank", type=int, default=8, help="of every adapter")
    parser.add_argument("--active", type=float, default=0.2, help="share of gates that are open")
    parser.add_argument("--tokens", type=int, default=64, help="per example")
    parser.add_argument("--batch-sizes", type=sizes, default=[1, 8, 32], help="with commas")
    parser.add_argument("--rounds", type=int, default=30, help="per batch size")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--note", default="", help="a word on the circumstances, kept in the file")
    parser.add_argument("--output", type=Path, help="write the JSON here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    named = ("rank", "active", "tokens", "rounds", "threads", "note")
    result: dict[str, Any] = {
        "models": {},
        "hypernetwork": hypernetwork(options.rank),
        "settings": {name: getattr(options, name) for name in named},
        "machine": machine(),
        "versions": versions(),
    }
    for name in options.models.split(","):
        result["models"][name] = measure_model(name, options)
        write(result, options.output)
    print(json.dumps(result, indent=1))


def write(result: Mapping[str, Any], output: Path | None) -> None:
    """What is there so far."""
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
