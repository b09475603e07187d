"""Any PEFT config as data: its type's name, its own fields, and how many parameters it trains on a model.

What a budget, `target_modules`, `scaling` and `dropout` decide for every method is not up to a config's own fields.
Parameters are counted by letting PEFT wrap a copy of the model that holds no weights.
"""

import copy
import dataclasses
import difflib
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankwise.adapters.attach import ADAPTER, head_modules, task_type
from rankwise.errors import ModelError
from rankwise.registry import did_you_mean

CONFIGS: Mapping[str, type[PeftConfig]] = {
    str(getattr(kind, "value", kind)): found
    for kind, found in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    if found.__module__.startswith("peft.")
}
"""PEFT's own config classes by the name of their type."""

DRIVEN = {
    "ADALORA": "has to be driven while it trains: use the method `adalora`, or `peft_adalora` for PEFT's own",
    "XLORA": "mixes adapters that are trained already",
    "MULTITASK_PROMPT_TUNING": "needs the number of a task with every batch",
    "POLY": "needs the number of a task with every batch",
    "TRAINABLE_TOKENS": "trains rows of the embeddings, no matrices",
}
"""Types that cannot be run by attaching to matrices and training alone."""

NOT_A_SIZE = frozenset({"OFT", "SUPERTUNING", "TINYLORA", "UNILORA", "VBLORA"})
"""Types whose `r` does not decide how many parameters are trained."""
ALPHA_PER_RANK = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha", "GRALORA": "alpha"}
"""Types that multiply their update with alpha / r (rsLoRA: alpha / √r), and the field's name."""

_BUDGET = "the method's `budget` decides it"
_TARGETS = "the method's `target_modules` decides what is adapted, for all methods alike"
_OURS = "Rankwise sets it from the model"
RESERVED = {
    "rank_pattern": _BUDGET,
    "alpha_pattern": "the method's `scaling` decides it",
    **dict.fromkeys(("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"), _TARGETS),
    **dict.fromkeys(("target_parameters", "layer_replication", "trainable_token_indices"), _TARGETS),
    **dict.fromkeys(("modules_to_save", "task_type", "peft_type", "auto_mapping", "peft_version"), _OURS),
    **dict.fromkeys(("base_model_name_or_path", "revision", "inference_mode", "fan_in_fan_out"), _OURS),
}
"""Fields that a config's own settings may not hold, and who decides them."""

REFUSED_STARTS = {
    "eva": "is a method of its own here: `eva`",
    "corda": "needs a pass over data that PEFT leaves to its user, and falls outside of what is compared here",
    "loftq": "replaces the base weights by quantised ones; quantise the base model when it is loaded instead",
    "lora_ga": "needs gradients that PEFT leaves to its user; without them it would silently start at random",
}
"""Values of `init_lora_weights` that attaching alone does not carry out, or that compare another base model."""

NEARBY = 32
"""How many sizes are tried beside one that PEFT refuses (not divisible, for instance)."""


@dataclass(frozen=True)
class Sized:
    """A size of an adapter (None where the type has none), and the parameters it trains."""

    size: int | None
    parameters: int


def known_type(kind: str) -> str:
    """PEFT's spelling of a type.

    Raises:
        ValueError: PEFT has no such type, or it cannot be run by attaching and training alone.
    """
    name = kind.strip().upper()
    if name in DRIVEN:
        raise ValueError(f"{name} {DRIVEN[name]}")
    if name not in CONFIGS:
        close = next(iter(difflib.get_close_matches(name, CONFIGS, n=1)), None)
        hint = f", did you mean '{close}'?" if close else ""
        raise ValueError(f"PEFT has no type '{kind}'{hint} Known: {', '.join(k for k in CONFIGS if k not in DRIVEN)}")
    return name


def fields_of(kind: str) -> dict[str, "dataclasses.Field[Any]"]:
    """A type's own fields by name."""
    return {f.name: f for f in dataclasses.fields(CONFIGS[kind]) if f.init}


def size_field(kind: str) -> str | None:
    """The field that decides how many parameters a type trains, if there is one."""
    known = fields_of(kind)
    found = next((name for name in ("r", "n_frequency") if name in known), None)
    return None if kind in NOT_A_SIZE else found


def dropout_field(kind: str) -> str | None:
    """The field for dropout on the adapter's input."""
    name = f"{kind.lower()}_dropout"
    return name if name in fields_of(kind) else None


def check_settings(kind: str, settings: Mapping[str, object]) -> None:
    """Only fields of this type, and none that others decide.

    Raises:
        ValueError: names the first field that cannot be set, and why.
    """
    known = fields_of(kind)
    reserved = dict(RESERVED)
    for name, owner in ((size_field(kind), _BUDGET), (dropout_field(kind), "the method's `dropout` decides it")):
        if name is not None:
            reserved[name] = owner
    if kind in ALPHA_PER_RANK:
        reserved[ALPHA_PER_RANK[kind]] = "it is the method's `scaling` times the rank"
    for name in settings:
        if name in reserved and (name in known or name in RESERVED):
            raise ValueError(f"'{name}' cannot be set here: {reserved[name]}")
        if name not in known:
            free = [f for f in known if f not in reserved]
            raise ValueError(
                f"{kind} has no field '{name}'{did_you_mean(name, free) or '.'} Known: {', '.join(sorted(free))}"
            )
    start = str(settings.get("init_lora_weights", "")).partition("_niter_")[0]
    if start in REFUSED_STARTS:
        raise ValueError(f"init_lora_weights '{start}' {REFUSED_STARTS[start]}")


def make_config(
    kind: str, model: nn.Module, wanted: Collection[str], settings: Mapping[str, object], size: int | None
) -> PeftConfig:
    """PEFT's config of this type for exactly the modules `wanted`, its heads trained whole.

    Raises:
        ValueError, TypeError: PEFT's, about a setting.
    """
    known = fields_of(kind)
    values: dict[str, object] = dict(settings)
    if size is not None:
        values[str(size_field(kind))] = size
    if "target_modules" in known:
        values["target_modules"] = set(wanted)
    if "modules_to_save" in known:
        values["modules_to_save"] = list(head_modules(model)) or None
    if "fan_in_fan_out" in known:
        values["fan_in_fan_out"] = any(isinstance(model.get_submodule(name), Conv1D) for name in wanted)
    if "feedforward_modules" in known:
        family = getattr(getattr(model, "config", None), "model_type", "")
        endings = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(family, [])
        values.setdefault("feedforward_modules", [name for name in wanted if name.endswith(tuple(endings))])
    return CONFIGS[kind](task_type=task_type(model), **values)


def attach_any(model: nn.Module, config: PeftConfig, *, seed: int) -> PeftModel:
    """Let PEFT wrap `model` in place; what it draws comes from `seed`, and the global random state stays.

    Raises:
        ModelError: PEFT cannot do that (the reason is PEFT's).
    """
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            wrapped = get_peft_model(model, config, adapter_name=ADAPTER)
        except (
            ValueError,
            TypeError,
            NotImplementedError,
            RuntimeError,
            AttributeError,
            KeyError,
            ImportError,
        ) as error:
            kind = config.peft_type.value
            raise ModelError(f"PEFT cannot put {kind} on {type(model).__name__}: {error}") from error
    return wrapped


def trained_parameters(model: nn.Module) -> int:
    """Trainable parameters without the heads that are trained whole."""
    return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and ".modules_to_save." not in name)


def count_parameters(model: nn.Module, make: Callable[[nn.Module], PeftConfig]) -> int:
    """What PEFT would train on `model` with the config that `make` returns; `model` stays as it is.

    Raises:
        ModelError, ValueError, TypeError: PEFT refuses the config, or cannot attach it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the config that is used says it again
        try:
            bare = skeleton(model)
            return trained_parameters(attach_any(bare, make(bare), seed=0))
        except ModelError:  # a few types look at the weights
            twin = copy.deepcopy(model)
            return trained_parameters(attach_any(twin, make(twin), seed=0))


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of the modules with every tensor on the meta device: no weights are held, none are copied."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(model, memo)


def largest_fitting(count: Callable[[int], int | None], limit: int, total: int) -> Sized | None:
    """The size in 1 … `limit` that trains most without going over `total`; the smallest of those that train as much.

    Parameters grow with the size, or shrink with it (RandLoRA's number of bases): sizes are doubled until `total` is
    crossed, then bisected.

    Args:
        count: parameters at a size, None where PEFT refuses it.
        limit: largest size worth trying.
        total: parameters to stay within.

    Returns:
        None if no size fits.
    """
    tried: dict[int, int] = {}

    def probe(sizes: Iterable[int]) -> int | None:
        """The first size that PEFT takes."""
        for size in islice(sizes, NEARBY):
            if size not in tried and (found := count(size)) is not None:
                tried[size] = found
                return size
        return None

    before: int | None = None
    for size in [*(2**i for i in range(limit.bit_length())), limit]:
        probe(range(size, min(2 * size, limit + 1)))
        latest = next(reversed(tried.values()), None)
        if len({found <= total for found in tried.values()}) == 2 or (before is not None and latest == before):
            break
        before = latest
    fitting = [size for size, found in tried.items() if found <= total]
    others = [size for size in tried if size not in fitting]
    if fitting and others:
        growing = max(fitting) < min(others)
        low, high = (max(fitting), min(others)) if growing else (max(others), min(fitting))
        while middle := probe(sorted(range(low + 1, high), key=lambda size: abs(2 * size - low - high))):
            fits = tried[middle] <= total
            low, high = (middle, high) if fits == growing else (low, middle)
    best = max((s for s in tried if tried[s] <= total), key=lambda s: (tried[s], -s), default=None)
    return None if best is None else Sized(best, tried[best])
