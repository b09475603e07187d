"""Reading LoRA and AdaLoRA checkpoints of stock PEFT (ours are such), as plain factors with all scale folded in.

What PEFT computes from a checkpoint (0.21):

- LoRA: ΔW = alpha/r · B A, or alpha/√r with rsLoRA, where r and alpha of a module are the first entry of the rank and
  alpha pattern that matches its name, else the defaults.
- AdaLoRA: ΔW = alpha/(ranknum + 1e-5) · B (E ∘ A), with `ranknum` the initial rank (PEFT saves it nowhere, and a pruned
  layer keeps it). Components with E = 0 add nothing and are left out.

Anything else (DoRA, adapters on embeddings, trained biases, initialisations that changed the base weights) is refused:
it is no B A on the base model. Weights come from safetensors files alone; a pickle may run code when it is opened.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rankwise.adapters.export import Frame
from rankwise.adapters.pairs import Pair, fold
from rankwise.allocation.names import natural
from rankwise.errors import DataError, ModelError
from rankwise.hub import hub_reachable

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
READABLE = "plain LoRA (rank and alpha patterns, rsLoRA, modules_to_save) and AdaLoRA checkpoints of PEFT"
KINDS: dict[str, Literal["lora", "adalora"]] = {"LORA": "lora", "ADALORA": "adalora"}
SHOWN = 8
"""Folders that a message names at most."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
"""Values of `init_lora_weights` that change the base weights, or make the layer something else than B A."""
NOT_LORA = (
    "use_qalora",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "megatron_config",
)
"""Settings of PEFT's LoRA that train something else, or other modules, than a B A beside a linear layer."""


@dataclass(frozen=True)
class SavedModule:
    """How the checkpoint holds a module: components, and the factor that PEFT multiplies them with."""

    rank: int
    scaling: float


@dataclass(frozen=True)
class AdapterCheckpoint:
    """A checkpoint that was read.

    `pairs` has every module of the file with its scale folded in (rank 0 where AdaLoRA pruned all of it), `saved` how
    each is stored there, `frame` what else it says, `config` the adapter_config.json as it stands, `shapes` every
    tensor of the file.
    """

    folder: Path
    kind: Literal["lora", "adalora"]
    pairs: dict[str, Pair]
    saved: dict[str, SavedModule]
    frame: Frame
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def ranks(self) -> dict[str, int]:
        """Live components per module."""
        return {name: pair.rank for name, pair in self.pairs.items()}

    @property
    def costs(self) -> dict[str, int]:
        """Parameters per component and module."""
        return {name: pair.cost for name, pair in self.pairs.items()}

    @property
    def parameters(self) -> int:
        """Adapter parameters as plain LoRA, the head not counted."""
        return sum(pair.rank * pair.cost for pair in self.pairs.values())


def read_checkpoint(source: str | Path) -> AdapterCheckpoint:
    """Read a LoRA or AdaLoRA checkpoint from a folder, or from the Hugging Face hub if `source` is an id there.

    Raises:
        ModelError: there is no such folder or repository, or it holds no adapter.
        DataError: the checkpoint is damaged, or no plain B A (the message says what can be read).
    """
    folder = find_folder(str(source))
    config = read_config(folder)
    if odd := why_not_plain(config):
        raise DataError(f"{folder} cannot be read: {odd}. What can: {READABLE}")
    kind = KINDS[str(config["peft_type"]).upper()]
    tensors = _tensors(folder)
    modules, extra = _sort(tensors, folder)
    read = _lora if kind == "lora" else _adalora
    pairs: dict[str, Pair] = {}
    saved: dict[str, SavedModule] = {}
    for name in sorted(modules, key=natural):
        saved[name], pairs[name] = read(name, modules[name], config, folder)
        if not (torch.isfinite(pairs[name].a).all() and torch.isfinite(pairs[name].b).all()):
            raise DataError(f"{folder}: {name} holds numbers that are not finite; did its training diverge?")
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    return AdapterCheckpoint(folder, kind, pairs, saved, _frame(config, extra, folder), config, shapes)


def read_frame(folder: Path) -> Frame:
    """What a checkpoint of any PEFT type says beside its own tensors; `extra` has the modules trained whole.

    Raises:
        ModelError, DataError: see `read_checkpoint`.
    """
    config = read_config(folder)
    frame = _frame(config, {}, folder)
    named = {key.removeprefix(PREFIX): value for key, value in _tensors(folder).items()}
    heads = [f".{head}." for head in frame.modules_to_save]
    extra = {key: value for key, value in named.items() if any(head in f".{key}" for head in heads)}
    return dataclasses.replace(frame, extra=extra)


def find_folder(source: str) -> Path:
    """The checkpoint's folder; an id of the hub is downloaded (its config and safetensors only).

    Raises:
        ModelError: neither a folder nor a repository that can be had.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(f"checkpoint {source} is a file; name the folder that holds its {CONFIG}")
    if path.exists() or source.startswith(("/", "./", "../", "~")) or source.count("/") != 1:
        raise ModelError(f"checkpoint {source} does not exist (a folder, or an id on the Hugging Face hub)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    offline = not hub_reachable()
    try:
        return Path(snapshot_download(source, allow_patterns=[CONFIG, WEIGHTS], local_files_only=offline))
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        why = "which cannot be reached, and is not in the local cache" if offline else "which knows no such repository"
        raise ModelError(f"checkpoint {source} is no folder, nor to be had from the Hugging Face hub, {why}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The `adapter_config.json` of a folder, as it stands.

    Raises:
        ModelError: there is none.
        DataError: it is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        whole = (folder / "config.json").is_file()
        what = "a whole model, no adapter (full fine-tuning, or merged already)" if whole else f"no {CONFIG}"
        if inside := sorted(found.parent.name for found in folder.glob(f"*/{CONFIG}")):
            more = f" and {len(inside) - SHOWN} more" if len(inside) > SHOWN else ""
            what += f", but its folders {', '.join(inside[:SHOWN])}{more} do: name one of them"
        raise ModelError(f"{folder} holds {what}. What can be read: {READABLE}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"cannot read {path}: it is not a JSON object")
    return config


def why_not_plain(config: Mapping[str, Any]) -> str | None:
    """What makes a PEFT checkpoint more than B A beside the base model's linear layers; None if it is just that."""
    if str(config.get("peft_type")).upper() not in KINDS:
        return f"peft_type '{config.get('peft_type')}' is neither LoRA nor AdaLoRA"
    variants = [f.name for f in dataclasses.fields(LoraConfig) if f.metadata.get("is_lora_variant")]
    for name in (*variants, *NOT_LORA):
        if config.get(name):
            return f"{name} = {config[name]!r} is more than B A"
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        return (
            f"init_lora_weights '{start}' changed the base weights (PEFT's save_pretrained with "
            "path_initial_model_for_weight_conversion makes plain LoRA of it)"
        )
    if config.get("bias", "none") != "none":
        return f"bias '{config['bias']}' trained biases of the base model too"
    return None


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        if any(folder.glob("adapter_model.bin")):
            raise DataError(
                f"{folder} has its weights in adapter_model.bin, a pickle, which may run code when opened; load it "
                "with PEFT if you trust it and save it again (PEFT writes safetensors by default)"
            )
        raise ModelError(f"{folder} holds no {WEIGHTS}")
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _sort(tensors: Mapping[str, Tensor], folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Tensors of each adapted module by part (`lora_A` …), and all others by their names in the base model."""
    modules: dict[str, dict[str, Tensor]] = {}
    extra: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = key.removeprefix(PREFIX)
        path, _, last = name.removesuffix(".weight").rpartition(".")
        if last in ("lora_A", "lora_B", "lora_E", "ranknum"):
            modules.setdefault(path, {})[last] = value
        elif ".lora_" in f".{name}":
            raise DataError(f"{folder}: tensor {key} belongs to no linear layer's B A. What can be read: {READABLE}")
        else:
            extra[name] = value
    if not modules:
        raise DataError(f"{folder}: no tensor of {WEIGHTS} is a lora_A or lora_B")
    for name, parts in modules.items():
        shapes = {part: tuple(parts[part].shape) for part in ("lora_A", "lora_B") if part in parts}
        if len(shapes) < 2 or any(len(s) != 2 for s in shapes.values()) or shapes["lora_A"][0] != shapes["lora_B"][1]:
            raise DataError(f"{folder}: {name} has factors of shapes {shapes}; expected (rank, in) and (out, rank)")
    return modules, extra


def _lora(name: str, parts: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> tuple[SavedModule, Pair]:
    found = _resolve(config, "rank_pattern", "r", name, folder)
    alpha = float(_resolve(config, "alpha_pattern", "lora_alpha", name, folder))
    rank = parts["lora_A"].shape[0]
    if rank != found:
        raise DataError(f"{folder}: {name} has rank {rank}, but its config says {found}; PEFT would not load it")
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return SavedModule(rank, scaling), fold(parts["lora_A"], parts["lora_B"], scaling)


def _adalora(
    name: str, parts: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path
) -> tuple[SavedModule, Pair]:
    values = parts.get("lora_E")
    rank = parts["lora_A"].shape[0]
    if values is None or values.numel() != rank:
        raise DataError(f"{folder}: {name} has {rank} components, but no lora_E of that length")
    initial = float(parts["ranknum"]) if "ranknum" in parts else _number(config, "init_r", 12, folder, low=1)
    alpha = _number(config, "lora_alpha", 8, folder)
    scaling = (alpha if alpha > 0 else rank) / (initial + 1e-5)
    live = (values.reshape(-1) != 0).nonzero().reshape(-1)
    a = (parts["lora_A"].float() * values.reshape(-1, 1).float())[live]  # a product of halves needs more than a half
    return SavedModule(rank, scaling), fold(a, parts["lora_B"][:, live].float(), scaling)


def _resolve(config: Mapping[str, Any], pattern: str, default: str, name: str, folder: Path) -> float:
    """A module's rank or alpha: the first pattern entry that PEFT's own rule finds, else the default."""
    entries = config.get(pattern) or {}
    if not isinstance(entries, dict):
        raise DataError(f"{folder}: {pattern} is {entries!r}; it must map names to numbers")
    try:
        value = entries.get(get_pattern_key(entries, name), config.get(default))
    except re.error as error:
        raise DataError(f"{folder}: {pattern} holds a key that is no regular expression ({error})") from error
    if not _is_number(value) or value <= 0:
        raise DataError(f"{folder}: {default} of {name} is {value!r}; it must be a number above 0")
    return value


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(config: Mapping[str, Any], name: str, default: float, folder: Path, *, low: float = -math.inf) -> float:
    value = config.get(name)
    value = default if value is None else value
    if not _is_number(value) or value < low:
        raise DataError(f"{folder}: {name} is {value!r}; it must be a number{f' from {low:g} on' if low > 0 else ''}")
    return float(value)


def _check_frame(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse fields that hold something else than PEFT writes, all of them at once."""
    wrong = [
        f"{name} is {config[name]!r}, and must be text or null"
        for name in ("task_type", "base_model_name_or_path", "revision")
        if not isinstance(config.get(name), str | None)
    ]
    dropout, heads, classes = (config.get(name) for name in ("lora_dropout", "modules_to_save", "auto_mapping"))
    if dropout is not None and not (_is_number(dropout) and 0 <= dropout <= 1):
        wrong.append(f"lora_dropout is {dropout!r}, and must be a number from 0 to 1")
    if heads is not None and not (isinstance(heads, list) and all(isinstance(head, str) for head in heads)):
        wrong.append(f"modules_to_save is {heads!r}, and must be a list of names or null")
    if classes is not None and not (isinstance(classes, dict) and all(isinstance(c, str) for c in classes.values())):
        wrong.append(f"auto_mapping is {classes!r}, and must map names to names or be null")
    if wrong:
        raise DataError(f"{folder}/{CONFIG}: {'; '.join(wrong)}")


def _frame(config: Mapping[str, Any], extra: Mapping[str, Tensor], folder: Path) -> Frame:
    _check_frame(config, folder)
    known = config.get("auto_mapping") or {}
    names = ("base_model_class", "parent_library")
    return Frame(
        task_type=config.get("task_type"),
        base_model=config.get("base_model_name_or_path"),
        revision=config.get("revision"),
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        modules_to_save=tuple(config.get("modules_to_save") or ()),
        dropout=float(config.get("lora_dropout") or 0.0),
        model_class=(known[names[0]], known[names[1]]) if all(name in known for name in names) else None,
        extra=dict(extra),
    )
