"""Whether the usual servers would read a PEFT LoRA checkpoint rightly, from its config and tensor shapes alone.

None of them reads all of what PEFT writes, and not all say so. Read in their sources (August 2026):

- vLLM (`vllm/lora/peft_helper.py` e745baff, `layers/base_linear.py` 1ace43ed) knows neither pattern and scales every
  module by alpha/r (alpha/√r with rsLoRA); ranks may differ as long as each fits `max_lora_rank`, which the server is
  started with and the config's r is checked against. It takes no trained heads and no DoRA.
- SGLang (`sglang/srt/lora/lora_config.py` 0ceb81fe, `lora.py`) refuses every pattern entry that differs from r or
  alpha, scales by alpha/r even with rsLoRA, and takes nothing but `peft_type` LORA.
- LoRAX and Text Generation Inference (`lorax_server/adapters/lora.py` 03679f33) scale by alpha/r (alpha/√r), and stack
  each kind of matrix over all layers: a kind that any layer lacks is dropped without a word, and ranks that do not pad
  to the same size (8, or the next multiple of 16) fail.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rankwise.adapters.families import block_index, family

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `max_lora_rank`."""
CLOSE = 1e-6
"""Two scalings that differ by less than this (relative) are the same."""


@dataclass(frozen=True)
class Stored:
    """What decides how a checkpoint is read.

    Args:
        config: adapter_config.json as it stands.
        shapes: tensor key -> shape, as in the file.
        scalings: module -> the factor that PEFT multiplies B A with.
        modules: linear layers of the base model, where known; without them only layers in the file are known of.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    scalings: Mapping[str, float]
    modules: Iterable[str] = ()

    @property
    def ranks(self) -> dict[str, int]:
        """Components of every module, by the shape of its lora_A."""
        return {name: self.shapes[key][0] for name in self.scalings for key in (_key(name),) if key in self.shapes}


@dataclass(frozen=True)
class Verdict:
    """What a server makes of a checkpoint: `problems` is empty if it reads every module as PEFT does."""

    server: str
    problems: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether it reads it as PEFT does."""
        return not self.problems


def serving_verdicts(stored: Stored) -> list[Verdict]:
    """One verdict per server."""
    return [Verdict(name, tuple(rule(stored))) for name, rule in RULES.items()]


def vllm_problems(stored: Stored) -> list[str]:
    """What vLLM refuses or misreads."""
    found = _common(stored)
    largest = max(stored.ranks.values(), default=0)
    declared = int(stored.config.get("r") or 0)
    limit = next((rank for rank in VLLM_RANKS if rank >= declared), None)
    if limit is None:
        found.append(f"r = {declared} is above the largest max_lora_rank, {VLLM_RANKS[-1]}")
    elif largest > limit:
        found.append(f"a module has rank {largest}, the config's r = {declared} promises at most {limit}")
    return found + _wrong_scale(stored, _scale(stored.config, rslora=True))


def sglang_problems(stored: Stored) -> list[str]:
    """What SGLang refuses or misreads."""
    found = _common(stored)
    for pattern, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        entries = stored.config.get(pattern) or {}
        odd = [key for key, value in entries.items() if value != stored.config.get(default)]
        if odd:
            found.append(f"refuses {pattern} ({len(odd)} entries differ from {default})")
    return found + _wrong_scale(stored, _scale(stored.config, rslora=False))


def lorax_problems(stored: Stored) -> list[str]:
    """What LoRAX and Text Generation Inference drop or misread."""
    found = _common(stored)
    present = stored.ranks
    kinds: dict[str, list[str]] = {}
    for name in present:
        kinds.setdefault(family(name), []).append(name)
    for kind, names in kinds.items():
        missing = [name for name in _layers_of(kind, stored) if name not in present]
        padded = {_padded(present[name]) for name in names}
        if missing:
            found.append(f"drops {kind} altogether: {missing[0]} has no adapter")
        elif len(padded) > 1:
            found.append(f"cannot stack {kind}: ranks pad to {', '.join(map(str, sorted(padded)))}")
    return found + _wrong_scale(stored, _scale(stored.config, rslora=True))


RULES: dict[str, Callable[[Stored], list[str]]] = {
    "vLLM": vllm_problems,
    "SGLang": sglang_problems,
    "LoRAX/TGI": lorax_problems,
}


def _common(stored: Stored) -> list[str]:
    found = []
    kind = str(stored.config.get("peft_type") or "")
    if kind.upper() != "LORA":
        found.append(f"peft_type {kind} is not LORA")
    if stored.config.get("use_dora"):
        found.append("takes no DoRA")
    others = [key for key in stored.shapes if ".lora_" not in key]
    if stored.config.get("modules_to_save") or others:
        named = stored.config.get("modules_to_save") or [others[0]]
        found.append(f"takes no modules trained whole ({', '.join(dict.fromkeys(named))})")
    return found


def _wrong_scale(stored: Stored, scale: float) -> list[str]:
    wrong = {name: s for name, s in stored.scalings.items() if not math.isclose(s, scale, rel_tol=CLOSE)}
    if not wrong:
        return []
    name, right = next(iter(wrong.items()))
    return [f"scales {len(wrong)} of {len(stored.scalings)} modules wrongly ({name}: {scale:g} instead of {right:g})"]


def _scale(config: Mapping[str, Any], *, rslora: bool) -> float:
    rank, alpha = float(config.get("r") or math.nan), float(config.get("lora_alpha") or math.nan)
    return alpha / (math.sqrt(rank) if rslora and config.get("use_rslora") else rank)


def _layers_of(kind: str, stored: Stored) -> list[str]:
    """Every module of a kind there should be: those of the base model, or one for each block that the file knows."""
    known = [name for name in stored.modules if family(name) == kind]
    if known:
        return known
    sample = next(name for name in stored.ranks if family(name) == kind)
    index = block_index(sample)
    if index is None:
        return [sample]
    before, after = sample.split(f".{index}.", 1) if f".{index}." in sample else (sample, "")
    blocks = {block_index(name) for name in stored.ranks if name.startswith(f"{before}.")}
    return [f"{before}.{block}.{after}" for block in sorted(b for b in blocks if b is not None)]


def _padded(rank: int) -> int:
    return 8 if rank <= 8 else -(-rank // 16) * 16


def _key(name: str) -> str:
    return f"base_model.model.{name}.lora_A.weight"
