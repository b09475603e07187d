"""Checkpoints of adapters that decide per input, read without their base model: what is stored, what was measured."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor

from rankwise.adapters.checkpoint import PREFIX, WEIGHTS, read_config, read_frame
from rankwise.adapters.export import Frame
from rankwise.adapters.pairs import Pair, fold
from rankwise.allocation.names import natural
from rankwise.errors import ConfigError, DataError, Finding
from rankwise.experiments.adapter_base import base_matrices
from rankwise.experiments.adapter_radlora import bank_factors, generated_factors
from rankwise.experiments.adapter_source import Source

_TENSOR = re.compile(r"(.+)\.(lora_\w+\..+)")
A, B = "lora_A.weight", "lora_B.weight"
NO_PARAMETERS = (".centre",)
"""Ends of tensors that are measured, not trained."""


@dataclass(frozen=True)
class ConditionalModule:
    """One module of the file.

    Args:
        rank: components.
        scaling: what PEFT multiplies B A with, where the adapter is open.
        beside: parameters on this module beside A and B: routers, gates, bypasses; what modules share lies on one.
        pair: A and B with the scale folded in, where the file has both.
    """

    rank: int
    scaling: float
    beside: int
    pair: Pair | None


@dataclass(frozen=True)
class ConditionalCheckpoint:
    """What a checkpoint of a type of our own holds.

    Args:
        kind: its PEFT type, such as `COGALORA`.
        modules: by full name, in natural order.
        parts: module -> its tensors, by what follows its name.
        usage: module (or block) -> share of training examples that open it; empty if it was never measured.
        threshold: probability above which something is open.
        frame: what is said beside that, trained heads included.
        config: adapter_config.json.
        shapes: of every tensor.
    """

    kind: str
    modules: dict[str, ConditionalModule]
    parts: dict[str, dict[str, Tensor]] = field(repr=False)
    usage: dict[str, float]
    threshold: float
    frame: Frame
    config: dict[str, Any] = field(repr=False)
    shapes: dict[str, tuple[int, ...]] = field(repr=False)

    @property
    def ranks(self) -> dict[str, int]:
        """Components per module."""
        return {name: module.rank for name, module in self.modules.items()}

    @property
    def beside(self) -> int:
        """Parameters of routers and whatever else decides or stands in."""
        return sum(module.beside for module in self.modules.values())

    @property
    def parameters(self) -> int:
        """All of them but the head's."""
        return self.beside + sum(pair.rank * pair.cost for pair in self.pairs.values())

    @property
    def share(self) -> float | None:
        """Share of open decisions over training examples, if it was measured."""
        return sum(self.usage.values()) / len(self.usage) if self.usage else None

    @property
    def decides_on(self) -> str:
        """`modules` or `blocks`."""
        return "blocks" if self.config.get("blocks") else "modules"

    @property
    def pairs(self) -> dict[str, Pair]:
        """Of the modules that have both factors."""
        return {name: module.pair for name, module in self.modules.items() if module.pair is not None}


def read_conditional(source: Source) -> ConditionalCheckpoint:
    """Read the checkpoint of `source`, whose `conditional` is not None.

    Raises:
        ModelError, DataError: it is damaged.
    """
    folder = source.folder
    frame, config = read_frame(folder), read_config(folder)
    assert source.conditional is not None
    tensors = load_file(folder / WEIGHTS)
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if match := _TENSOR.fullmatch(key.removeprefix(PREFIX)):
            found.setdefault(match[1], {})[match[2]] = value
    parts = {name: found[name] for name in sorted(found, key=natural)}
    if not parts:
        raise DataError(f"{folder}: {WEIGHTS} holds no tensor of a {source.conditional.TYPE} adapter")
    usage, threshold = _measured(config, folder)
    return ConditionalCheckpoint(
        kind=source.conditional.TYPE,
        modules={name: _module(name, each, config, folder) for name, each in parts.items()},
        parts=parts,
        usage=usage,
        threshold=threshold,
        frame=frame,
        config=config | {"peft_type": source.conditional.TYPE},
        shapes={key: tuple(value.shape) for key, value in tensors.items()},
    )


def average_pairs(checkpoint: ConditionalCheckpoint) -> dict[str, Pair]:
    """Plain LoRA factors with every decision at its average over training examples.

    Raises:
        ConfigError: averages were not measured, or the base model is needed and not at hand.
        DataError: the checkpoint does not fit the base model.
    """
    return _STATIC[checkpoint.kind](checkpoint)


def _gates_at_usage(checkpoint: ConditionalCheckpoint) -> dict[str, Pair]:
    """ΔW = ḡ · s · B A, ḡ the share of training examples that open the gate."""
    _check_measured(checkpoint, checkpoint.usage)
    return {name: fold(pair.a, pair.b, checkpoint.usage[name]) for name, pair in checkpoint.pairs.items()}


def _full_depth(checkpoint: ConditionalCheckpoint) -> dict[str, Pair]:
    """Every block for every input: its LoRA is the same for all."""
    return checkpoint.pairs


def _components_at_average(checkpoint: ConditionalCheckpoint) -> dict[str, Pair]:
    """ΔW = s · Σ_j w̄_j · b_j a_jᵀ, w̄ the average of gate, rank mask and coefficient over training examples."""
    config, weights = checkpoint.config, checkpoint.config.get("components") or {}
    _check_measured(checkpoint, weights)
    if config.get("generator") == "hyper":
        factors = generated_factors(checkpoint.parts, config)
    else:
        matrices, unknown = base_matrices(checkpoint.frame)
        if unknown:
            message = f"'static' needs the base model's shapes, which are not at hand ({unknown}); name it with --model"
            raise ConfigError("export", [Finding("--form", message)])
        factors = bank_factors(checkpoint.parts, config, matrices)
    return {
        name: fold(a, b * b.new_tensor(weights[name]), checkpoint.modules[name].scaling)
        for name, (a, b) in factors.items()
    }


def _check_measured(checkpoint: ConditionalCheckpoint, measured: Mapping[str, object]) -> None:
    missing = next((name for name in checkpoint.modules if name not in measured), None)
    if missing is not None:
        message = (
            f"the config does not say how often the adapter of {missing} is used: that is measured when training with "
            "a method of rankwise ends"
        )
        raise ConfigError("export", [Finding("--form", f"'static' is not possible: {message}")])


_STATIC: dict[str, Callable[[ConditionalCheckpoint], dict[str, Pair]]] = {
    "COGALORA": _gates_at_usage,
    "RADBLOCK": _full_depth,
    "RADLORA": _components_at_average,
}


def _measured(config: Mapping[str, Any], folder: Path) -> tuple[dict[str, float], float]:
    """Usage and threshold; what was `dropped` is looked at too, so that it can be shown."""
    usage, threshold, dropped = config.get("usage") or {}, config.get("threshold"), config.get("dropped")
    if not isinstance(usage, dict) or not all(map(_is_share, usage.values())) or not _is_share(threshold):
        raise DataError(f"{folder}: usage and threshold of its config must be numbers from 0 to 1; was it edited?")
    if dropped is not None and not _is_dropped(dropped):
        raise DataError(
            f"{folder}: dropped of its config is {str(dropped)[:100]}; it is left out, or holds a list `modules`, and "
            "`before` and `after` with numbers by name; was it edited?"
        )
    return {name: float(share) for name, share in usage.items()}, float(threshold)


def _is_dropped(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("modules"), list):
        return False
    sides = [value.get(when) for when in ("before", "after")]
    return all(isinstance(side, dict) and all(map(_is_number, side.values())) for side in sides)


def _is_share(value: object) -> TypeGuard[float]:
    return _is_number(value) and 0 <= value <= 1


def _module(name: str, parts: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> ConditionalModule:
    rank, alpha = (
        _resolved(config, pattern, default, name, folder)
        for pattern, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    )
    scaling = alpha / rank
    others = {part: value for part, value in parts.items() if part not in (A, B) and not part.endswith(NO_PARAMETERS)}
    beside = sum(value.numel() for value in others.values())
    if A not in parts or B not in parts:
        return ConditionalModule(int(rank), scaling, beside, None)
    a, b = parts[A], parts[B]
    if a.dim() != 2 or b.dim() != 2 or (a.shape[0], b.shape[1]) != (rank, rank):
        raise DataError(
            f"{folder}: {name} has factors of shapes {tuple(a.shape)} and {tuple(b.shape)}, but its config says rank "
            f"{rank:g}; PEFT would not load it"
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise DataError(f"{folder}: {name} holds numbers that are not finite; did its training diverge?")
    return ConditionalModule(int(rank), scaling, beside, fold(a, b, scaling))


def _resolved(config: Mapping[str, Any], pattern: str, default: str, name: str, folder: Path) -> float:
    entries = config.get(pattern) or {}
    value = entries.get(get_pattern_key(entries, name), config.get(default))
    if not _is_number(value) or value <= 0:
        raise DataError(f"{folder}: {default} of {name} is {value!r}; it must be a number above 0")
    return float(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
