"""PEFT's own adapters as peers: `dora`, `rslora`, `pissa`, and `peft` for any other config, all through one class.

What keeps a peer honest is the budget in parameters, those that are trained, whatever they are:

- LoRA and its variants spend it as uniform LoRA does, to the last parameter. What is trained beside the factors is
  paid first (DoRA: one magnitude per output), and the rest buys as many ranks as it can.
- Other types with a size get the largest that fits; types without one have to fit.

The result is plain LoRA wherever that is exact: rsLoRA's √r is folded into B; PiSSA moved part of the base weights into
its first factors A0, B0, so that what it learned relative to the untouched base model is [B, -B0] [A; A0], of twice the
rank. Anything else is written by PEFT itself.
"""

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, final

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.adapters.attach import ADAPTER, adapted_layers, attach_lora, find_matrices
from rankwise.adapters.contract import (
    METHODS,
    AdapterConfig,
    Form,
    Method,
    ParameterCount,
    refuse_impossible,
    trainable_state,
)
from rankwise.adapters.export import export_adapter, lora_pairs, new_directory
from rankwise.adapters.fused import fuse
from rankwise.adapters.lora_method import resolve_budget
from rankwise.adapters.merge import save_model
from rankwise.adapters.pairs import Pair, fold
from rankwise.adapters.patterns import set_patterns
from rankwise.adapters.peft_types import (
    ALPHA_PER_RANK,
    attach_any,
    check_settings,
    count_parameters,
    dropout_field,
    fields_of,
    known_type,
    largest_fitting,
    make_config,
    size_field,
    trained_parameters,
)
from rankwise.allocation.budget import Target, allocate, largest_reachable
from rankwise.errors import BudgetError, ConfigError, Finding, ModelError

TOLERANCE = 0.0
"""LoRA types spend the budget exactly; with parameters beside the factors (DoRA) at most one rank is left over."""
MOVES_WEIGHTS = ("pissa", "olora")
"""Values (or their beginnings) of `init_lora_weights` that take the first B A out of the base weights."""
PLAIN_STARTS = (True, False, "gaussian", "orthogonal")
"""Values that leave the base weights alone."""


class PeerConfig(AdapterConfig, ABC):
    """A peer: which PEFT type, with which of its own settings."""

    @abstractmethod
    def peft_type(self) -> str:
        """PEFT's name of the type."""

    @abstractmethod
    def peft_settings(self) -> dict[str, object]:
        """Fields of PEFT's config that this peer sets."""

    def check(self, total_steps: int) -> list[Finding]:
        """Nothing is set that the type would ignore."""
        kind, found = self.peft_type(), []
        if self.dropout and dropout_field(kind) is None:
            found.append(
                Finding("method.dropout", f"{self.dropout:g}, but PEFT's {kind} has no dropout; leave it at 0")
            )
        default = type(self).model_fields["scaling"].default
        if self.scaling != default and kind not in ALPHA_PER_RANK:
            message = f"{self.scaling:g}, but PEFT's {kind} has no alpha / rank; leave it at {default:g}"
            found.append(Finding("method.scaling", message))
        if "num_virtual_tokens" in fields_of(kind) and "num_virtual_tokens" not in self.peft_settings():
            message = f"PEFT's {kind} needs `num_virtual_tokens`, which decides its size"
            found.append(Finding("method.settings", message))
        return found

    def build(self, model: nn.Module, *, total_steps: int, seed: int) -> "Peer":
        """Wrap the model with PEFT.

        Raises:
            ConfigError: a setting is none of this type, or PEFT refuses its value.
            BudgetError: no size of this type fits the budget.
            ModelError: PEFT cannot attach this type to this model.
        """
        refuse_impossible(self, total_steps)
        return Peer(model, self, seed=seed)


@METHODS.register("peft")
class PeftPeerConfig(PeerConfig):
    """Any PEFT config as a peer: VERA, LOHA, IA3, HRA and the others, by PEFT's name of the type."""

    name: Literal["peft"] = "peft"
    type: Annotated[str, AfterValidator(known_type)] = Field(
        default="LORA", description="PEFT's name of the type (`peft.PeftType`), such as VERA, LOHA, IA3"
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="fields of that type's own PEFT config; what is adapted, its size, alpha and dropout are set by "
        "the method's fields",
    )

    @field_validator("settings")
    @classmethod
    def _known_settings(cls, settings: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if kind := info.data.get("type"):
            check_settings(kind, settings)
        return settings

    def peft_type(self) -> str:
        """As configured."""
        return self.type

    def peft_settings(self) -> dict[str, object]:
        """As configured."""
        return dict(self.settings)


class _LoraVariant(PeerConfig, ABC):
    """A preset of PEFT's LoRA."""

    def peft_type(self) -> str:
        """LoRA."""
        return "LORA"


@METHODS.register("dora")
class DoraConfig(_LoraVariant):
    """Weight-decomposed LoRA (PEFT's DoRA): a learned magnitude per output beside uniform LoRA."""

    name: Literal["dora"] = "dora"

    def peft_settings(self) -> dict[str, object]:
        """DoRA (Liu et al. 2024, arXiv 2402.09353)."""
        return {"use_dora": True}


@METHODS.register("rslora")
class RsloraConfig(_LoraVariant):
    """Rank-stabilised LoRA (PEFT's rsLoRA): uniform LoRA scaled with alpha / √rank."""

    name: Literal["rslora"] = "rslora"
    scaling: float = Field(
        default=2.0,
        gt=0,
        description="alpha / rank, as for every method; rsLoRA multiplies B A with alpha / √rank = scaling · √rank",
    )

    def peft_settings(self) -> dict[str, object]:
        """rsLoRA (Kalajdzievski 2023, arXiv 2312.03732)."""
        return {"use_rslora": True}


@METHODS.register("pissa")
class PissaConfig(_LoraVariant):
    """LoRA started from the leading singular directions of the base weights (PEFT's PiSSA)."""

    name: Literal["pissa"] = "pissa"
    iterations: int | None = Field(
        default=None,
        ge=1,
        description="subspace iterations of a fast, approximate SVD (PEFT's `pissa_niter_16` has 16); by default exact",
    )

    def peft_settings(self) -> dict[str, object]:
        """PiSSA (Meng et al. 2024, arXiv 2404.02948)."""
        return {"init_lora_weights": "pissa" if self.iterations is None else f"pissa_niter_{self.iterations}"}


@final
class Peer(Method):
    """A PEFT adapter at the budget; it decides nothing while it trains."""

    model: PeftModel
    config: PeerConfig

    def __init__(self, model: nn.Module, config: PeerConfig, *, seed: int) -> None:
        self.kind, self.settings = config.peft_type(), config.peft_settings()
        self.matrices = find_matrices(model, config.target_modules)
        self.costs = {name: matrix.cost for name, matrix in self.matrices.items()}
        self.target: Target = resolve_budget(model, config, self.matrices)
        self.config = config
        ranks = self._lora_ranks(model) if self.kind == "LORA" else None
        self.size = None if ranks is not None else self._fit(model)
        peft_config = self._peft_config(model, self.size)
        if ranks is not None and isinstance(peft_config, LoraConfig):
            set_patterns(peft_config, ranks, {name: config.scaling * rank for name, rank in ranks.items()})
            try:
                self.model = attach_lora(model, ranks, config=peft_config, seed=seed)
            except (ValueError, TypeError) as error:
                raise ModelError(f"PEFT cannot put {self._title()} on {type(model).__name__}: {error}") from error
            fuse(self.model)  # layers of a variant such as DoRA hand over to PEFT
        else:
            self.model = attach_any(model, peft_config, seed=seed)
        self.trained = trained_parameters(self.model)
        self._moved = self._moved_weights()

    def rank_pattern(self) -> dict[str, int]:
        """Rank per matrix of LoRA and its variants; empty for types that have no LoRA rank."""
        if self.kind != "LORA":
            return {}
        layers = adapted_layers(self.model)
        return {name: layers[name].r[ADAPTER] for name in self.matrices}

    def parameter_count(self) -> ParameterCount:
        """What is trained, head excluded."""
        return ParameterCount(self.trained, self.trained)

    def state_dict(self) -> dict[str, Tensor]:
        """Trained weights, and the factors that were taken out of the base weights."""
        moved = {f"rankwise.moved.{name}.a": pair.a.clone() for name, pair in self._moved.items()}
        moved |= {f"rankwise.moved.{name}.b": pair.b.clone() for name, pair in self._moved.items()}
        return trainable_state(self.model) | moved

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up weights; shapes never change. Where an SVD came out otherwise (another machine), so do the base
        weights: what the saved run had taken out is taken out here."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state[name])
        layers = adapted_layers(self.model) if self._moved else {}
        for name, own in self._moved.items():
            saved = Pair(*(state[f"rankwise.moved.{name}.{factor}"].to(own.a) for factor in "ab"))
            if torch.equal(saved.a, own.a) and torch.equal(saved.b, own.b):
                continue
            base: Any = layers[name].get_base_layer()
            difference = own.b.float() @ own.a.float() - saved.b.float() @ saved.a.float()
            base.weight += (difference.T if isinstance(base, Conv1D) else difference).to(base.weight)
            self._moved[name] = saved

    def export(self, directory: Path, form: Form = "compact") -> Path:
        """Write plain LoRA where that is exact, else PEFT's own checkpoint (`compact`) or the merged model.

        Raises:
            ConfigError: this type cannot be written as `uniform`, or not be merged.
            OutputError: see the contract.
        """
        if not self._is_plain():
            return self._export_by_peft(directory, form)
        pairs = lora_pairs(self.model)
        if form != "merged":  # a merged model keeps the base weights that it was trained with
            pairs = {name: _relative(pair, self._moved.get(name)) for name, pair in pairs.items()}
        return export_adapter(self.model, pairs, directory, form)

    def _peft_config(self, model: nn.Module, size: int | None) -> PeftConfig:
        config, kind = self.config, self.kind
        values = dict(self.settings)
        if field := dropout_field(kind):
            values[field] = config.dropout
        if kind in ALPHA_PER_RANK and size is not None:
            values[ALPHA_PER_RANK[kind]] = config.scaling * size
        try:
            return make_config(kind, model, self.matrices, values, size)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                config.name, [Finding("method.settings", f"PEFT's {kind} refuses them: {error}")]
            ) from error

    def _lora_ranks(self, model: nn.Module) -> dict[str, int] | None:
        """Uniform ranks at the budget; None for LoRA whose ranks do not cost what LoRA's do (MiCA trains A alone)."""
        every = sum(self.costs.values())
        two, four = (count_parameters(model, partial(self._peft_config, size=rank)) for rank in (2, 4))
        if four - two != 2 * every:
            return None
        beside = two - 2 * every  # magnitudes, biases
        target = self.target
        if target.unit == "parameters" and beside:
            rest = target.total - beside - every
            if rest < 0:
                raise BudgetError(
                    f"{self.config.name}: the budget is {target.total:,} parameters, but rank 1 everywhere costs "
                    f"{every + beside:,} here, {beside:,} of them beside the factors; raise the budget or adapt fewer "
                    "target_modules"
                )
            target = Target(every + largest_reachable(rest, list(self.costs.values())), "parameters")
        caps = {name: matrix.full_rank for name, matrix in self.matrices.items()}
        return allocate(dict.fromkeys(self.matrices, 1.0), self.costs, target, floor=1, cap=caps)

    def _fit(self, model: nn.Module) -> int | None:
        """The largest size whose parameters fit the budget, or None where the type has no size and fits."""
        if self.target.unit == "ranks":
            raise BudgetError(f"{self.config.name}: {self.kind} has no LoRA ranks to count; give parameters")
        refused: list[Exception] = []

        def count(size: int | None) -> int | None:
            try:
                return count_parameters(model, partial(self._peft_config, size=size))
            except (ModelError, ConfigError) as error:
                refused.append(error)
                return None

        sides = [(m.in_features, m.out_features) for m in self.matrices.values()]
        sized = size_field(self.kind) is not None
        limit = max(map(max, sides)) if size_field(self.kind) == "r" else min(a * b for a, b in sides)
        best = largest_fitting(count, limit, self.target.total) if sized else None
        if best is not None:
            return best.size
        least = count(1 if sized else None)
        if least is None:
            raise refused[-1]
        if sized or least > self.target.total:
            raise BudgetError(
                f"{self.config.name}: {self.kind} trains {least:,} parameters{' at size 1' if sized else ''}, the "
                f"budget is {self.target.total:,}; raise the budget or adapt fewer target_modules"
            )
        return None

    def _is_plain(self) -> bool:
        """Whether the adapter is B A beside weights that we know."""
        if self.kind != "LORA":
            return False
        start = self.model.peft_config[ADAPTER].init_lora_weights
        known = start in PLAIN_STARTS or bool(self._moved)
        layers = adapted_layers(self.model).values()
        simple = all(not layer.lora_variant and not layer.lora_bias[ADAPTER] for layer in layers)
        return known and simple and self.model.peft_config[ADAPTER].bias == "none"

    def _moved_weights(self) -> dict[str, Pair]:
        """B0 A0 (scale folded in) that PEFT took out of each base weight, by name."""
        start = getattr(self.model.peft_config[ADAPTER], "init_lora_weights", None)
        if not (isinstance(start, str) and start.startswith(MOVES_WEIGHTS)):
            return {}
        moved = {}
        for name, layer in adapted_layers(self.model).items():
            a, b = (factor[ADAPTER].weight.detach().clone() for factor in (layer.lora_A, layer.lora_B))
            if (a.shape[1], b.shape[0]) != (layer.in_features, layer.out_features):  # OLoRA on GPT-2's Conv1D
                raise ModelError(f"PEFT's {start} gives {name} factors of the wrong shape; it knows linear layers only")
            moved[name] = fold(a, b, layer.scaling[ADAPTER])
        return moved

    def _export_by_peft(self, directory: Path, form: Form) -> Path:
        if form == "uniform":
            message = f"'uniform' is plain LoRA, and {self._title()} is no B A beside the base weights"
            raise ConfigError(
                "export", [Finding("form", f"{message}; use 'compact' (PEFT alone loads it) or 'merged'")]
            )
        if form == "compact":
            with new_directory(directory) as folder, warnings.catch_warnings():
                # PEFT takes the bias of a `lora_B` for a matrix that was not gathered from other processes.
                warnings.filterwarnings("ignore", message=r".*invalid shape: .*lora_B\.bias")
                self.model.save_pretrained(str(folder), save_embedding_layers=False)
            return directory
        try:
            merged = copy.deepcopy(self.model).merge_and_unload(safe_merge=True)
        except (AttributeError, NotImplementedError, ValueError, TypeError) as error:
            message = f"PEFT cannot merge {self._title()} into the weights ({error}); use 'compact'"
            raise ConfigError("export", [Finding("form", message)]) from error
        with new_directory(directory) as folder:
            save_model(merged, folder)
        return directory

    def _title(self) -> str:
        shown = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.kind} ({shown})" if shown else self.kind


def _relative(pair: Pair, moved: Pair | None) -> Pair:
    """The adapter relative to the base weights as they were: [B, -B0] [A; A0]."""
    if moved is None:
        return pair
    return Pair(torch.cat([pair.a, moved.a.to(pair.a)]), torch.cat([pair.b, -moved.b.to(pair.b)], 1))
