"""Changing the rank of a living adapter without changing what it computes more than it must.

Growing is exact: new rows of `lora_A` are drawn as PEFT draws them, new columns of `lora_B` are zero. Shrinking keeps
the best approximation of `B A` of the new rank (Eckart & Young 1936). Both are linear maps on the rank dimension,
`A' = N A` and `B' = B M`, so the optimizer's moments can follow:

    ∂L/∂A' = Mᵀ ∂L/∂A     and     ∂L/∂B' = ∂L/∂B Nᵀ         (because W = s·B A ≈ s·B' A')

First moments are mapped like the gradients. Second moments are mapped with the squared entries of the maps, which
drops the correlation between components (the same diagonal view that Adam takes). New components start with a first
moment of zero and the average second moment of the old ones: with a second moment of zero a parameter that
joins late moves about six times too far, because Adam's bias correction has faded by then.

Scaling (alpha / rank) stays what it was: alpha moves with the rank.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.contract import generator_for
from rankwise.adapters.gated import gate_of
from rankwise.adapters.patterns import write_patterns
from rankwise.errors import AllocationError

LINEAR_STATES = ("exp_avg", "momentum_buffer", "grad_avg")
SQUARED_STATES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
CAN_FOLLOW = "use AdamW, Adam, SGD, RMSprop or Adagrad"
_REMOVED = "_rankwise_removed"
"""Attribute on a PEFT model: name -> layer whose adapter was taken off, emptied, in case a saved state has it back."""


class OptimizerLike(Protocol):
    """What a resize needs of an optimizer (torch's, or Accelerate's wrapper of it)."""

    @property
    def param_groups(self) -> list[dict[str, list[nn.Parameter]]]:
        """Groups of parameters."""

    @property
    def state(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """State per parameter."""


@dataclass(frozen=True)
class RankMap:
    """The linear maps of a resize. `rows` N: (new, old) acts on `lora_A`; `columns` M: (old, new) acts on `lora_B`.

    `fresh` new components are appended after the mapped ones.
    """

    rows: Tensor
    columns: Tensor
    fresh: int = 0


def shrink_map(lora_a: Tensor, lora_b: Tensor, rank: int) -> RankMap:
    """The map to the best rank-`rank` approximation of `lora_b @ lora_a`.

    QR of both factors reduces the SVD to r x r: with B = Q_b R_b, Aᵀ = Q_a R_a and R_b R_aᵀ = U S Wᵀ, keeping the
    leading right directions W_k gives N = c·W_kᵀ R_a⁺ᵀ and M = R_aᵀ W_k / c, and M N is the projector that truncates
    the SVD. `c` is the root-mean-square singular value of A, so that the new A has the size the old one had. The
    pseudo-inverse R_a⁺ is the inverse unless rows of A have died or become copies of each other.

    Args:
        lora_a: (old, in).
        lora_b: (out, old).
        rank: new rank, below old.
    """
    a, b = lora_a.double(), lora_b.double()
    r_a = torch.linalg.qr(a.T, mode="r").R
    r_b = torch.linalg.qr(b, mode="r").R
    w = torch.linalg.svd(r_b @ r_a.T).Vh[:rank].T
    size = a.norm() / math.sqrt(a.shape[0])
    size = size if size > 0 else 1.0  # nothing there: any map to zeros is the best
    rows = (torch.linalg.pinv(r_a) @ w).T * size
    columns = r_a.T @ w / size
    return RankMap(rows.to(lora_a.dtype), columns.to(lora_b.dtype))


def grow_map(old: int, rank: int, like: Tensor) -> RankMap:
    """The map that keeps `old` components and appends `rank - old` fresh ones."""
    identity = torch.eye(old, dtype=like.dtype, device=like.device)
    return RankMap(identity, identity, fresh=rank - old)


def select_map(old: int, kept: Sequence[int], like: Tensor) -> RankMap:
    """The map that keeps exactly the components `kept` (of `old`), in their order."""
    chosen = torch.eye(old, dtype=like.dtype, device=like.device)[list(kept)]
    return RankMap(chosen, chosen.T)


def apply_resize(
    model: PeftModel,
    ranks: Mapping[str, int],
    *,
    kept: Mapping[str, Sequence[int]] | None = None,
    optimizer: OptimizerLike | None = None,
    seed: int = 0,
    step: int = 0,
    restore: bool = False,
) -> None:
    """Give every named module its new rank, carry the optimizer's moments over, and keep PEFT's config true.

    Rank 0 takes the adapter off the module. Modules that are not named, or keep their rank, are not touched. Other
    adapters on the same model stay as they are. With `restore` (taking up a saved state, before the optimizer exists)
    an adapter that was taken off comes back.

    Raises:
        AllocationError: a module carries no adapter to resize, its adapter is merged, or the optimizer keeps a state
            that cannot follow.
    """
    layers = adapted_layers(model)
    for index, (name, rank) in enumerate(ranks.items()):
        if name not in layers:
            if rank == 0:
                continue
            if restore and name in model.__dict__.get(_REMOVED, {}):
                resize_layer(_put_back(model, name), rank, generator=generator_for(seed, step, index))
                continue
            raise AllocationError(f"cannot give rank {rank} to {name}: it carries no adapter (any more)")
        layer = layers[name]
        if rank == layer.r[ADAPTER]:
            continue
        if layer.merged:
            raise AllocationError(f"cannot resize {name}: its adapter is merged into the weights; unmerge it first")
        if rank == 0:
            _remove(model, name, layer, optimizer)
        else:
            keep = (kept or {}).get(name)
            generator = generator_for(seed, step, index)
            resize_layer(layer, rank, kept=keep, optimizer=optimizer, generator=generator)
    write_patterns(model)


@torch.no_grad()
def resize_layer(
    layer: LoraLayer,
    rank: int,
    *,
    kept: Sequence[int] | None = None,
    optimizer: OptimizerLike | None = None,
    generator: torch.Generator,
) -> None:
    """Give one PEFT LoRA layer another rank (>= 1); new Parameters take the old ones' places in the optimizer.

    Gates of single components (`GatedLinear`) follow; a shrink that mixes components cannot be done to them, so it
    needs `kept`. New components start with a gate of 1 (their B is 0: with both at 0 neither would ever move).
    """
    linear_a, linear_b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    gated = gate_of(layer)
    old_a, old_b = linear_a.weight if gated is None else gated.raw, linear_b.weight
    old = old_a.shape[0]
    components = gated is not None and gated.per_component
    if rank > old:
        rank_map = grow_map(old, rank, old_a)
    elif kept is not None:
        rank_map = select_map(old, list(kept)[:rank], old_a)
    elif components:
        raise AllocationError("components with gates of their own cannot be mixed; say which are `kept`")
    else:
        rank_map = shrink_map(old_a, old_b, rank)
    bound = 1 / math.sqrt(old_a.shape[1])  # kaiming_uniform(a=√5), PEFT's init of lora_A: Var = 1 / (3·in)
    fresh = torch.empty(rank_map.fresh, old_a.shape[1]).uniform_(-bound, bound, generator=generator)
    new_a = _like(old_a, torch.cat([rank_map.rows @ old_a, fresh.to(old_a)]))
    new_b = _like(old_b, torch.cat([old_b @ rank_map.columns, old_b.new_zeros(old_b.shape[0], rank_map.fresh)], 1))
    if optimizer is not None:
        _move_state(optimizer, old_a, new_a, rank_map.columns.T, rank_map.fresh, dim=0)
        _move_state(optimizer, old_b, new_b, rank_map.rows.T, rank_map.fresh, dim=1)
    linear_a.weight, linear_b.weight = new_a, new_b
    if gated is not None and components:
        old_gate = gated.gate
        gated.gate = _like(old_gate, torch.cat([rank_map.rows @ old_gate, old_gate.new_ones(rank_map.fresh)]))
        if optimizer is not None:
            _move_state(optimizer, old_gate, gated.gate, rank_map.rows, rank_map.fresh, dim=0)
    linear_a.out_features = linear_b.in_features = rank
    layer.r[ADAPTER] = rank
    layer.lora_alpha[ADAPTER] = layer.scaling[ADAPTER] * rank


def _like(old: nn.Parameter, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=old.requires_grad)


def _move_state(
    optimizer: OptimizerLike, old: nn.Parameter, new: nn.Parameter, linear: Tensor, fresh: int, *, dim: int
) -> None:
    """Put `new` where `old` was. `linear` maps the gradient: `linear @ g` for dim 0, `g @ linear` for dim 1."""
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    state = optimizer.state.pop(old, None)
    if not state:
        return
    moved: dict[str, Tensor] = {}
    for key, value in state.items():
        _check_state(key, value, old)
        if not torch.is_tensor(value) or value.dim() == 0:
            moved[key] = value
        elif key in LINEAR_STATES:
            mapped = linear @ value if dim == 0 else value @ linear
            moved[key] = _append(mapped, torch.zeros_like(mapped).mean(dim, keepdim=True), fresh, dim)
        else:
            square = linear**2
            mapped = square @ value if dim == 0 else value @ square
            moved[key] = _append(mapped, value.mean(dim, keepdim=True), fresh, dim)
    optimizer.state[new] = moved


def _append(mapped: Tensor, filler: Tensor, fresh: int, dim: int) -> Tensor:
    return torch.cat([mapped, filler.repeat_interleave(fresh, dim)], dim)


def _remove(model: PeftModel, name: str, layer: LoraLayer, optimizer: OptimizerLike | None) -> None:
    """Take our adapter off a module: the base layer takes the wrapper's place, unless other adapters live in it."""
    parameters = [p for linear in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]) for p in linear.parameters()]
    gone = {id(p) for p in parameters}
    if set(layer.lora_A) == {ADAPTER}:
        _set_module(model, name, layer.get_base_layer())
        _empty(layer)
        model.__dict__.setdefault(_REMOVED, {})[name] = layer
    else:
        layer.set_adapter([active for active in layer.active_adapters if active != ADAPTER])  # or PEFT picks another
        layer.delete_adapter(ADAPTER)
    if optimizer is None:
        return
    for group in optimizer.param_groups:
        for parameter in [p for p in group["params"] if id(p) in gone]:
            optimizer.state.pop(parameter, None)
        group["params"] = [p for p in group["params"] if id(p) not in gone]


def _put_back(model: PeftModel, name: str) -> LoraLayer:
    """The wrapper that was taken off `name`, in its place again, at rank 0."""
    layer: LoraLayer = model.__dict__[_REMOVED].pop(name)
    base = model.base_model.model.get_submodule(name)
    layer.to(base.weight.device)
    layer.base_layer = base
    _set_module(model, name, layer)
    return layer


@torch.no_grad()
def _empty(layer: LoraLayer) -> None:
    """Let go of the weights of a layer that nobody uses, and of its base layer, which has its place again."""
    linear_a, linear_b, gated = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER], gate_of(layer)
    old_a = linear_a.weight if gated is None else gated.raw
    linear_a.weight, linear_b.weight = (
        _like(old_a, old_a[:0].clone()),
        _like(linear_b.weight, linear_b.weight[:, :0].clone()),
    )
    if gated is not None and gated.per_component:
        gated.gate = _like(gated.gate, gated.gate[:0].clone())
    layer.r[ADAPTER] = 0
    layer.base_layer = nn.Identity()


def _set_module(model: PeftModel, name: str, module: nn.Module) -> None:
    parent_name, _, leaf = name.rpartition(".")
    setattr(model.base_model.model.get_submodule(parent_name), leaf, module)


def check_optimizer(optimizer: Any) -> None:  # noqa: ANN401 - torch's, or Accelerate's wrapper
    """Find out before training whether this optimizer's state can follow a resize: one step on a small matrix.

    An optimizer that cannot be made from its own defaults is not judged; the first resize will tell.

    Raises:
        AllocationError: it keeps a state that cannot follow.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    accepted = inspect.signature(type(inner).__init__).parameters
    options = {key: value for key, value in inner.defaults.items() if key in accepted}
    probe = nn.Parameter(torch.ones(2, 3))
    probe.grad = torch.ones(2, 3)
    try:
        trial = type(inner)([probe], **options)
        trial.step()
    except Exception:  # whatever a foreign optimizer says to a matrix that small
        return
    for key, value in trial.state[probe].items():
        _check_state(key, value, probe)


def _check_state(key: str, value: object, parameter: nn.Parameter) -> None:
    """Raises AllocationError: a state `key` of this shape cannot follow a resize of `parameter`."""
    if not torch.is_tensor(value) or value.dim() == 0:  # step counters
        return
    if key not in LINEAR_STATES + SQUARED_STATES or value.shape != parameter.shape:
        raise AllocationError(
            f"the optimizer keeps a state '{key}' of shape {tuple(value.shape)} that cannot follow a resize; "
            f"{CAN_FOLLOW}"
        )
