"""Reading checkpoints: the same ΔW as the model that stock PEFT loads from them, or one clear refusal."""

import json
import math
import shutil
import warnings

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from tiny import batch, build, logits, tiny_model
from torch import nn

from rankwise.adapters.attach import ADAPTER
from rankwise.adapters.checkpoint import CONFIG, WEIGHTS, find_folder, read_checkpoint, read_frame
from rankwise.adapters.export import write_lora
from rankwise.errors import DataError, ModelError

QUIET = pytest.mark.filterwarnings("ignore")


def randomise(model, seed=3):
    """Adapter weights that do something (PEFT starts them at ΔW = 0)."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def peft_model(family="bert", **fields):
    settings = {"r": 4, "lora_alpha": 8, "task_type": "SEQ_CLS"} | fields
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return randomise(get_peft_model(tiny_model(family), LoraConfig(**settings)))


def adalora_model(**fields):
    settings = {"init_r": 6, "target_r": 3, "tinit": 1, "tfinal": 2, "total_step": 8, "lora_alpha": 5}
    targets = ["query", "value", "intermediate.dense"]
    return randomise(
        get_peft_model(
            tiny_model(), AdaLoraConfig(**(settings | {"task_type": "SEQ_CLS", "target_modules": targets} | fields))
        )
    )


def deltas(model):
    """ΔW (out, in) per module, from PEFT's own layers."""
    found = {}
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            delta = module.get_delta_weight(ADAPTER).detach()
            found[name] = delta.T if type(module.get_base_layer()).__name__ == "Conv1D" else delta
    return found


def assert_reads(folder, model, *, atol=1e-6):
    """`read_checkpoint` finds exactly the modules and the ΔW of a PEFT model; returns what it read."""
    checkpoint = read_checkpoint(folder)
    expected = deltas(model)
    assert checkpoint.pairs.keys() == expected.keys()
    for name, pair in checkpoint.pairs.items():
        torch.testing.assert_close((pair.b @ pair.a).float(), expected[name].float(), rtol=0, atol=atol)
    return checkpoint


def reload(folder, family="bert"):
    return PeftModel.from_pretrained(tiny_model(family), folder)


PATTERNS = {
    "uniform": {},
    "rslora": {"use_rslora": True},
    "suffix": {"rank_pattern": {"key": 2}, "alpha_pattern": {"key": 6, "value": 3}},
    "rank alone": {"rank_pattern": {"intermediate.dense": 1}},
    "regex": {"rank_pattern": {r"layer\.1\.attention.*\.query": 3, "query": 2}, "alpha_pattern": {r".*\.1\..*": 1}},
    "anchored": {"rank_pattern": {r"^bert.encoder.layer.0.attention.self.query": 2, "attention.self.quer": 7}},
    "overlapping": {"rank_pattern": {"attention.output.dense": 5, "output.dense": 2}},
    "rslora pattern": {"use_rslora": True, "rank_pattern": {"key": 9}, "alpha_pattern": {"key": 2}},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@QUIET
@pytest.mark.parametrize("fields", PATTERNS.values(), ids=PATTERNS)
def test_plain_lora_reads_as_peft_loads_it(tmp_path, fields):
    targets = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    model = peft_model(target_modules=targets, **fields)
    model.save_pretrained(tmp_path)
    assert_reads(tmp_path, reload(tmp_path))
    checkpoint = assert_reads(tmp_path, model)
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            assert checkpoint.saved[name].rank == module.r[ADAPTER] == checkpoint.ranks[name]
            assert checkpoint.saved[name].scaling == pytest.approx(module.scaling[ADAPTER])
    assert set(checkpoint.frame.extra) == {"classifier.weight", "classifier.bias"}
    assert (checkpoint.kind, checkpoint.frame.task_type) == ("lora", "SEQ_CLS")


@QUIET
def test_patterns_that_peft_reorders_on_saving_are_refused_as_peft_refuses_them(tmp_path):
    """PEFT sorts the keys of a config it saves, and the first match wins: these now say another rank than the file."""
    pattern = {"output.dense": 2, "attention.output.dense": 5}
    peft_model(target_modules=["output.dense"], rank_pattern=pattern).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        reload(tmp_path)
    with pytest.raises(DataError, match="has rank 2, but its config says 5; PEFT would not load it"):
        read_checkpoint(tmp_path)


@QUIET
def test_layer_1_is_not_layer_11(tmp_path):
    model = get_peft_model(
        tiny_model(num_hidden_layers=13),
        LoraConfig(
            r=2,
            target_modules=["query"],
            rank_pattern={"1.attention.self.query": 5, r"layer.2.attention.self.query": 7},
            alpha_pattern={"11.attention.self.query": 4},
        ),
    )
    randomise(model).save_pretrained(tmp_path)
    checkpoint = assert_reads(tmp_path, model)
    ranks = {int(name.split(".")[3]): rank for name, rank in checkpoint.ranks.items()}
    assert ranks == dict.fromkeys(range(13), 2) | {1: 5, 2: 7}


@QUIET
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "distilbert"])
def test_other_architectures(tmp_path, family):
    targets = {"gpt2": ["c_attn", "c_proj"], "t5": ["q", "wo"], "distilbert": ["q_lin", "lin2"]}
    model = peft_model(family, target_modules=targets.get(family, ["q_proj", "down_proj"]))
    model.save_pretrained(tmp_path)
    checkpoint = assert_reads(tmp_path, model)
    assert checkpoint.frame.fan_in_fan_out is (family == "gpt2")
    assert checkpoint.parameters == sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)


@QUIET
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alpha", [8, 7])
def test_half_precision_is_read_without_rounding(tmp_path, dtype, alpha):
    """A power of two folds into the halves; any other scale would round, so the factor becomes float32."""
    model = peft_model(target_modules=["query"], lora_alpha=alpha)
    model.save_pretrained(tmp_path)
    halves = {key: value.to(dtype) for key, value in load_file(tmp_path / WEIGHTS).items()}
    save_file(halves, tmp_path / WEIGHTS, metadata={"format": "pt"})
    checkpoint = read_checkpoint(tmp_path)
    for name, pair in checkpoint.pairs.items():
        a, b = (halves[f"base_model.model.{name}.lora_{part}.weight"].float() for part in "AB")
        assert torch.equal(pair.a.float(), a)
        assert torch.equal(pair.b.float(), b * (alpha / 4))
        assert pair.b.dtype == (dtype if alpha == 8 else torch.float32)


def prune(model, pattern):
    """Set PEFT's masks as its allocator would leave them."""
    ranks = {}
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            mask = torch.tensor([bool(pattern(len(ranks), i)) for i in range(len(module.lora_E[ADAPTER]))])
            module.lora_E[ADAPTER].data[~mask] = 0
            ranks[f"{name}.lora_E.{ADAPTER}"] = mask.tolist()
    model.peft_config[ADAPTER].rank_pattern = ranks
    return model


def assert_imports_losslessly(folder, model, out):
    """The checkpoint's ΔW is PEFT's, and as plain LoRA it gives PEFT's logits."""
    loaded = reload(folder)
    torch.testing.assert_close(logits(loaded, unlabelled()), logits(model, unlabelled()), rtol=0, atol=1e-6)
    checkpoint = assert_reads(folder, loaded)
    write_lora(checkpoint.frame, checkpoint.pairs, out)
    plain = reload(out)
    assert plain.peft_config[ADAPTER].peft_type == "LORA"
    torch.testing.assert_close(logits(plain, unlabelled()), logits(loaded, unlabelled()), rtol=0, atol=1e-6)
    return checkpoint


def unlabelled():
    return {key: value for key, value in batch().items() if key != "labels"}  # PEFT's AdaLoRA fails on labels here


@QUIET
def test_adalora_before_pruning(tmp_path):
    model = adalora_model()
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / CONFIG).read_text())["rank_pattern"] is None
    checkpoint = assert_imports_losslessly(tmp_path / "saved", model, tmp_path / "plain")
    assert (checkpoint.kind, set(checkpoint.ranks.values())) == ("adalora", {6})
    assert checkpoint.saved["bert.encoder.layer.0.attention.self.query"].scaling == pytest.approx(5 / (6 + 1e-5))


@QUIET
@pytest.mark.parametrize("alpha", [5, 0])
def test_adalora_after_pruning(tmp_path, alpha):
    """Rank 0 to 6: PEFT saves only what its masks keep, and still divides by the initial rank."""
    model = prune(adalora_model(lora_alpha=alpha), lambda module, i: i >= module or i == 5)
    model.base_model.model.bert.encoder.layer[1].attention.self.value.lora_E[ADAPTER].data[:] = 0
    saved = model.peft_config[ADAPTER].rank_pattern
    saved = saved | {f"bert.encoder.layer.1.attention.self.value.lora_E.{ADAPTER}": [False] * 6}
    model.peft_config[ADAPTER].rank_pattern = saved
    model.save_pretrained(tmp_path / "saved")
    if alpha == 0:  # PEFT then scales by the rank at loading, not by what was trained: what it loads is what counts
        assert_reads(tmp_path / "saved", reload(tmp_path / "saved"))
        return
    checkpoint = assert_imports_losslessly(tmp_path / "saved", model, tmp_path / "plain")
    assert sorted(checkpoint.ranks.values()) == [0, 1, 3, 4, 5, 6]


@QUIET
def test_dead_components_that_peft_saved_are_left_out(tmp_path):
    model = adalora_model()
    for module in model.base_model.model.modules():
        if isinstance(module, LoraLayer):
            module.lora_E[ADAPTER].data[::2] = 0
    model.save_pretrained(tmp_path / "saved")
    checkpoint = assert_imports_losslessly(tmp_path / "saved", model, tmp_path / "plain")
    assert set(checkpoint.ranks.values()) == {3}
    assert {saved.rank for saved in checkpoint.saved.values()} == {6}


@QUIET
def test_ranknum_in_the_file_wins(tmp_path):
    """PEFT does not save it, but loads it if it is there."""
    adalora_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    keys = [key.replace(".lora_E", ".ranknum") for key in tensors if key.endswith(".lora_E")]
    save_file(tensors | {key: torch.tensor([2.0]) for key in keys}, tmp_path / WEIGHTS, metadata={"format": "pt"})
    checkpoint = assert_reads(tmp_path, reload(tmp_path))
    assert checkpoint.saved["bert.encoder.layer.0.attention.self.query"].scaling == pytest.approx(5 / (2 + 1e-5))


@QUIET
def test_half_precision_adalora_is_read_without_rounding(tmp_path):
    adalora_model().save_pretrained(tmp_path)
    halves = {key: value.bfloat16() for key, value in load_file(tmp_path / WEIGHTS).items()}
    save_file(halves, tmp_path / WEIGHTS, metadata={"format": "pt"})
    assert_reads(tmp_path, reload(tmp_path))  # PEFT loads adapters as float32


@QUIET
def test_pefts_adalora_trained_by_us_reads_as_its_own_export(tmp_path):
    """A run of `peft_adalora`: PEFT's own save and our export hold the same ΔW."""
    method = build("peft_adalora")
    prune(randomise(method.model), lambda module, i: i > 0)
    method.check_finished = lambda: None
    method.export(tmp_path / "ours")
    method.model.save_pretrained(tmp_path / "pefts")
    ours, pefts = read_checkpoint(tmp_path / "ours"), read_checkpoint(tmp_path / "pefts")
    assert ours.ranks == pefts.ranks
    for name in ours.pairs:
        one, other = ours.pairs[name], pefts.pairs[name]
        torch.testing.assert_close(one.b @ one.a, other.b @ other.a, rtol=0, atol=1e-7)


def saved(tmp_path, **changes):
    """A plain checkpoint whose config is changed afterwards."""
    peft_model(target_modules=["query"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | changes))
    return tmp_path


FRAMES = [
    ({"lora_dropout": "x"}, r"adapter_config\.json: lora_dropout is 'x', and must be a number from 0 to 1"),
    ({"lora_dropout": 1.5}, "lora_dropout is 1.5"),
    ({"lora_dropout": float("nan")}, "lora_dropout is nan"),
    ({"lora_dropout": [0.1]}, r"lora_dropout is \[0.1\]"),
    ({"lora_dropout": True}, "lora_dropout is True"),
    ({"modules_to_save": 5}, "modules_to_save is 5, and must be a list of names or null"),
    ({"modules_to_save": "score"}, "modules_to_save is 'score'"),
    ({"auto_mapping": 5}, "auto_mapping is 5"),
    ({"auto_mapping": {"base_model_class": 1}}, "auto_mapping is"),
    ({"task_type": 3, "revision": []}, "task_type is 3, and must be text or null; revision is"),
    ({"base_model_name_or_path": {}}, "base_model_name_or_path is"),
]
"""What concerns checkpoints of any PEFT type."""


@QUIET
@pytest.mark.parametrize(("changes", "message"), FRAMES)
def test_a_frame_that_is_not_what_peft_writes_is_told(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read_frame(saved(tmp_path, **changes))


@QUIET
@pytest.mark.parametrize(("field", "value"), [("lora_alpha", "x"), ("init_r", "six"), ("init_r", -1)])
def test_numbers_of_adalora_that_are_none(tmp_path, field, value):
    adalora_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {field: value}))
    with pytest.raises(DataError, match=f"{field} is {value!r}; it must be a number"):
        read_checkpoint(tmp_path)


@QUIET
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, r"use_dora = True is more than B A\. What can: plain LoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4' changed the base weights"),
        ({"init_lora_weights": "olora"}, "changed the base weights"),
        ({"bias": "lora_only"}, "bias 'lora_only' trained biases"),
        ({"peft_type": "IA3"}, r"peft_type 'IA3' is neither LoRA nor AdaLoRA\. What can: plain LoRA .* and AdaLoRA"),
        ({"peft_type": None}, "peft_type 'None' is neither"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"r": 3}, "has rank 4, but its config says 3"),
        ({"r": 0}, "must be a number above 0"),
        ({"lora_alpha": None}, "lora_alpha of .* is None"),
        ({"lora_alpha": True}, "lora_alpha of .* is True"),
        ({"lora_alpha": float("nan")}, "lora_alpha of .* is nan"),
        ({"r": 4.5}, "has rank 4, but its config says 4.5"),
        ({"rank_pattern": {"layer.1.attention.self.query": 2}}, r"layer\.1.*has rank 4, but its config says 2"),
        ({"peft_type": "ADALORA"}, "no lora_E"),
        *FRAMES,
    ],
)
def test_what_is_no_plain_lora_is_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read_checkpoint(saved(tmp_path, **changes))


@QUIET
@pytest.mark.parametrize(
    ("config", "targets"),
    [
        (LoraConfig(use_dora=True, target_modules=["query"]), "use_dora"),
        (LoraConfig(target_modules=["word_embeddings"]), "belongs to no linear layer"),
        (IA3Config(target_modules=["query"], feedforward_modules=[]), "IA3"),
        (LoraConfig(target_modules=["query"], bias="all"), "bias 'all'"),
    ],
)
def test_other_peft_methods_are_refused_as_peft_saves_them(tmp_path, config, targets):
    get_peft_model(tiny_model(), config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=targets):
        read_checkpoint(tmp_path)


@QUIET
def test_convolutions_are_refused(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

    get_peft_model(Net(), LoraConfig(target_modules=["conv"])).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"conv has factors of shapes .*expected \(rank, in\)"):
        read_checkpoint(tmp_path)


@QUIET
def test_pickled_weights_are_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was opened",))

    saved(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    torch.save(Trap(), tmp_path / "adapter_model.bin")
    with pytest.raises(DataError, match="a pickle, which may run code"):
        read_checkpoint(tmp_path)


@QUIET
def test_damaged_checkpoints_are_named(tmp_path):
    folder = saved(tmp_path / "whole")
    for file, content in ((CONFIG, b"{"), (CONFIG, b"[]"), (WEIGHTS, b"not safetensors")):
        shutil.copytree(folder, tmp_path / "broken")
        (tmp_path / "broken" / file).write_bytes(content)
        with pytest.raises(DataError, match=file):
            read_checkpoint(tmp_path / "broken")
        shutil.rmtree(tmp_path / "broken")
    tensors = load_file(folder / WEIGHTS)
    bad = {key: value / 0 if "layer.1" in key and "lora_B" in key else value for key, value in tensors.items()}
    save_file(bad, folder / WEIGHTS)
    with pytest.raises(DataError, match=r"layer\.1\.attention\.self\.query holds numbers that are not finite"):
        read_checkpoint(folder)
    lost = {key: value for key, value in tensors.items() if "layer.0.attention.self.query.lora_B" not in key}
    save_file(lost, folder / WEIGHTS)
    with pytest.raises(DataError, match=r"layer\.0\.attention\.self\.query has factors of shapes"):
        read_checkpoint(folder)
    save_file({"base_model.model.classifier.weight": torch.zeros(3, 32)}, folder / WEIGHTS)
    with pytest.raises(DataError, match=r"no tensor .* is a lora_A"):
        read_checkpoint(folder)


def test_folders_that_hold_no_adapter(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        read_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=f"holds no {CONFIG}"):
        read_checkpoint(tmp_path)
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a whole model, no adapter"):
        read_checkpoint(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="is a file; name the folder"):
        read_checkpoint(tmp_path / "file")


def test_hub_ids_are_asked_of_the_hub(tmp_path, monkeypatch):
    """Only the two files, and offline only from the cache."""
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        if name == "some/missing":
            raise FileNotFoundError("not cached")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert find_folder("some/adapter") == tmp_path
    assert asked == [("some/adapter", {"allow_patterns": [CONFIG, WEIGHTS], "local_files_only": True})]
    with pytest.raises(ModelError, match=r"some/missing is no folder.*cannot be reached"):
        find_folder("some/missing")
    with pytest.raises(ModelError, match="does not exist"):
        find_folder("a/b/c")
    assert len(asked) == 2


def test_our_own_export_reads_back(tmp_path):
    method = build("lora")
    randomise(method.model)
    expected = deltas(method.model)
    checkpoint = read_checkpoint(method.export(tmp_path / "out"))
    assert checkpoint.ranks == method.rank_pattern()
    assert checkpoint.parameters == method.parameter_count().final
    assert {saved.scaling for saved in checkpoint.saved.values()} == {1.0}
    for name, pair in checkpoint.pairs.items():
        torch.testing.assert_close(pair.b @ pair.a, expected[name], rtol=0, atol=1e-6)
    assert math.isclose(checkpoint.frame.dropout, 0.0)
