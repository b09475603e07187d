"""Which matrices are adapted, how they are wrapped through PEFT, and how their parameters are counted."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from rankwise.errors import ModelError
from rankwise.registry import did_you_mean

ADAPTER = "default"
NEW_MODULES = "_rankwise_new_modules"
"""Attribute on a base model: names of modules the loader had to initialise (the task head), which are trained whole."""


@dataclass(frozen=True)
class Matrix:
    """A weight matrix that can carry an adapter; one rank costs `in_features + out_features` parameters."""

    name: str
    in_features: int
    out_features: int

    @property
    def cost(self) -> int:
        """Parameters per rank."""
        return self.in_features + self.out_features

    @property
    def full_rank(self) -> int:
        """No adapter of this matrix is worth more rank than this."""
        return min(self.in_features, self.out_features)


def base_parameter_count(model: nn.Module) -> int:
    """Parameters of the base model, task head excluded (what a percentage budget refers to).

    A quantised matrix counts in x out, however its bits are packed.
    """
    head = tuple(f"{name}." for name in head_modules(model))
    packed = {
        id(module.weight): module.in_features * module.out_features
        for module in model.modules()
        if isinstance(module, nn.Linear) and not module.weight.is_floating_point()
    }
    counted = [p for name, p in model.named_parameters() if not f"{name}.".startswith(head)]
    return sum(packed.get(id(p), p.numel()) for p in counted)


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Top-level modules trained whole beside the adapter: those the loader initialised, else the usual heads."""
    known = getattr(model, NEW_MODULES, None)
    if known is not None:
        return tuple(known)
    return tuple(name for name, _ in model.named_children() if name in ("classifier", "score"))


def find_matrices(model: nn.Module, target_modules: Sequence[str] | None = None) -> dict[str, Matrix]:
    """The matrices to adapt, by full name, in model order.

    Without `target_modules`: every linear layer inside the repeated blocks of the network (a module under a numbered
    list), so neither embeddings, pooler nor head. With it: the linear layers whose name is, or ends with, one of the
    entries (`query`, `attention.self.query`, or a full name).

    Raises:
        ModelError: nothing matches (lists what could have been adapted), or the model carries adapters already.
    """
    if isinstance(model, PeftModel) or any(isinstance(m, LoraLayer) for m in model.modules()):
        raise ModelError(f"{type(model).__name__} carries adapters already; load the base model afresh")
    head = tuple(f"{name}." for name in head_modules(model))
    linear = {
        name: Matrix(name, *_shape(module))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not f"{name}.".startswith(head or ("\0",))
    }
    if target_modules is None:
        found = {name: m for name, m in linear.items() if any(part.isdigit() for part in name.split("."))}
        if not found:
            raise ModelError(
                f"{type(model).__name__} has no linear layers inside repeated blocks to adapt; name them with "
                f"target_modules. Linear layers: {_endings(linear) or 'none'}"
            )
        return found
    found = {name: m for name, m in linear.items() if any(_names(name, t) for t in target_modules)}
    unmatched = [t for t in target_modules if not any(_names(name, t) for name in linear)]
    if not target_modules:
        raise ModelError(f"target_modules is empty; leave it out, or name some of: {_endings(linear) or 'none'}")
    if unmatched:
        known = sorted({name.rsplit(".", 1)[-1] for name in linear})
        named = "; ".join(f"'{entry}' matches no linear layer{did_you_mean(entry, known)}" for entry in unmatched)
        end = "" if named.endswith("?") else "."
        raise ModelError(
            f"target_modules of {type(model).__name__}: {named}{end} Linear layers: {_endings(linear) or 'none'}"
        )
    return found


def attach_lora(
    model: nn.Module,
    matrices: Iterable[str],
    *,
    config: LoraConfig,
    seed: int,
) -> PeftModel:
    """Wrap exactly `matrices` with PEFT, keep the head trainable and freeze the rest.

    What the adapters start from depends on `seed` alone; the global random state is left as it was.

    Raises:
        ModelError: PEFT adapted another set of matrices, or the head is quantised.
    """
    wanted = list(matrices)
    _check_head(model)
    config.target_modules = set(wanted)
    config.modules_to_save = list(head_modules(model)) or None
    config.task_type = task_type(model)
    # GPT-2's Conv1D keeps its weight transposed; PEFT would set this itself, with a warning per layer.
    config.fan_in_fan_out = any(isinstance(model.get_submodule(name), Conv1D) for name in wanted)
    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT 0.21 asks Transformers by the old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        torch.manual_seed(seed)
        peft_model = get_peft_model(model, config, adapter_name=ADAPTER)
    adapted = set(adapted_layers(peft_model))
    if adapted != set(wanted):
        odd = sorted(adapted ^ set(wanted))
        raise ModelError(f"PEFT adapted another set of matrices than asked for; first difference: {odd[0]}")
    return peft_model


def adapted_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Full name in the base model -> the PEFT layer that carries our adapter (perhaps among others), in model order."""
    root = model.base_model.model if isinstance(model, PeftModel) else model
    return {
        name: module for name, module in root.named_modules() if isinstance(module, LoraLayer) and ADAPTER in module.r
    }


def task_type(model: nn.Module) -> TaskType | None:
    """PEFT's task type for a Transformers model class, None where PEFT has no special class."""
    endings: Mapping[str, TaskType] = {
        "ForSequenceClassification": TaskType.SEQ_CLS,
        "ForCausalLM": TaskType.CAUSAL_LM,
        "LMHeadModel": TaskType.CAUSAL_LM,
        "ForTokenClassification": TaskType.TOKEN_CLS,
        "ForQuestionAnswering": TaskType.QUESTION_ANS,
    }
    return next((kind for ending, kind in endings.items() if type(model).__name__.endswith(ending)), None)


def _check_head(model: nn.Module) -> None:
    """The head is trained whole, so it has to be there in full precision."""
    for name in head_modules(model):
        if any(not p.is_floating_point() for p in model.get_submodule(name).parameters()):
            raise ModelError(
                f"the task head '{name}' is quantised and cannot be trained; load the model with "
                f"BitsAndBytesConfig(…, llm_int8_skip_modules=['{name}'])"
            )


def _shape(module: nn.Linear | Conv1D) -> tuple[int, int]:
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    return module.in_features, module.out_features


def _names(full: str, target: str) -> bool:
    return full == target or full.endswith(f".{target}")


def _endings(linear: Mapping[str, Matrix]) -> str:
    return ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
