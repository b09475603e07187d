"""Self-distillation: while inputs skip blocks, the model learns from what it says itself at full depth.

Before a training pass the same batch goes through every block, without gradients and without dropout; the distance of
the pass that is being trained is added to the gradient of the loss that the model returns, not to its value:

    loss + (D - stop(D)) ,    D = w τ² KL(softmax(t / τ) ‖ softmax(s / τ))      (Hinton, Vinyals & Dean 2015)

(arXiv 1503.02531) with s the logits and t those at full depth; w · mean (s - t)² where the model regresses. So the loss
that is reported stays the task's, and whatever a trainer does to a loss (accumulation, scaling, several processes) is
done to both.

While every block is still kept, bypasses learn to imitate their blocks from the hidden states that come by:

    D = mean over bypasses of  ‖h + bypass(h) - Block(h)‖² / ‖Block(h) - h‖² ,    h and Block(h) without gradients
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from rankwise.adapters.conditional.block_config import RadBlockPeftConfig
from rankwise.adapters.conditional.block_living import living_blocks
from rankwise.adapters.conditional.tokens import IGNORED


@contextmanager
def full_depth(config: RadBlockPeftConfig) -> Iterator[None]:
    """Every input keeps every block in inference."""
    before = config.threshold, config.kept_patterns
    config.threshold, config.kept_patterns = -1.0, None
    try:
        yield
    finally:
        config.threshold, config.kept_patterns = before


def distance(student: Tensor, teacher: Tensor, temperature: float, labels: Tensor | None = None) -> Tensor:
    """D without its weight; see the module.

    Args:
        student: (batch, classes); (batch, 1) regresses; (batch, tokens, vocabulary) counts the tokens that predict one
            with a label.
        teacher: same shape.
        temperature: τ.
        labels: (batch, tokens) for a language model.
    """
    if student.dim() == 2 and student.shape[1] == 1:
        return (student - teacher).square().mean()
    soft = [functional.log_softmax(logits.float() / temperature, dim=-1) for logits in (student, teacher)]
    each = temperature**2 * (soft[1].exp() * (soft[1] - soft[0])).sum(-1)
    if labels is None or each.dim() != 2:
        return each.mean()
    counts = functional.pad(labels[:, 1:], (0, 1), value=IGNORED) != IGNORED
    return (each * counts).sum() / counts.sum().clamp_min(1)


IMITATION = 0.1
"""Weight of the bypasses' distance to their blocks: small, so that the clip of gradients stays what the task makes of
it (Adam does not mind the size)."""


class SelfDistillation:
    """Hooks on a base model; see the module.

    `phase` is `imitate` (every block is kept, bypasses learn), `distil` (blocks are skipped) or None.

    Args:
        model: the base model.
        config: of the adapter.
        weight: w; 0 leaves the second pass out.
        temperature: τ.
    """

    def __init__(self, model: nn.Module, config: RadBlockPeftConfig, *, weight: float, temperature: float) -> None:
        self.config, self.weight, self.temperature = config, weight, temperature
        self.phase: str | None = None
        self.blocks = list(living_blocks(model).values())
        self._taught: Tensor | None = None
        self._teaching = False
        self._hooks: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._teach, with_kwargs=True, prepend=True),
            model.register_forward_hook(self._learn, with_kwargs=True),
        ]

    def stop(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def _wanted(self, model: nn.Module) -> bool:
        return self.phase is not None and not self._teaching and model.training and torch.is_grad_enabled()

    def _teach(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._taught = None
        wanted = self._wanted(model)
        for record in self.blocks:
            record.imitation = [] if wanted and self.phase == "imitate" else None
        if not wanted or self.phase != "distil" or not self.weight:
            return
        given = {name: value for name, value in kwargs.items() if name not in ("labels", "num_items_in_batch")}
        given["return_dict"] = True
        modules = [module for module in model.modules() if module.training]
        self._teaching = True
        try:
            for module in modules:
                module.training = False
            with torch.no_grad(), full_depth(self.config):
                self._taught = model(*args, **given).logits
        finally:
            self._teaching = False
            for module in modules:
                module.training = True
            torch.clear_autocast_cache()  # what autocast kept of this pass has no gradient

    def _learn(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ANN401
        if not self._wanted(model):
            return output
        loss, logits = loss_and_logits(output)
        if loss is None:
            return output
        if self._taught is not None:
            scale = self.weight * share_of_step(kwargs, logits)
            apart = scale * distance(logits, self._taught, self.temperature, kwargs.get("labels"))
        else:
            apart = self._imitation(loss)
        self._taught = None
        loss = loss + (apart - apart.detach())
        if isinstance(output, tuple):
            return loss, *output[1:]
        output["loss"] = loss
        return output

    def _imitation(self, like: Tensor) -> Tensor:
        """The bypasses' distance, with a graph to every trainable part, of which the router's gradient is 0."""
        found = [part for record in self.blocks for part in record.imitation or ()]
        routers = [p for record in self.blocks for p in record.router_parameters() if p.requires_grad]
        idle = [p.float().sum() * 0 for p in routers]  # DDP and optimizers expect a gradient of everything
        return sum([IMITATION * torch.stack(found).mean()] if found else [], sum(idle, like.new_zeros(()).float()))


def loss_and_logits(output: Any) -> tuple[Tensor | None, Any]:  # noqa: ANN401 - a model's, as a tuple or by name
    """Of a model's output; the loss is None if there is none, which in a tuple is a first part that is no scalar."""
    if not isinstance(output, tuple):
        return getattr(output, "loss", None), getattr(output, "logits", None)
    scalar = isinstance(output[0], Tensor) and output[0].dim() == 0
    return (output[0], output[1]) if scalar else (None, output[0])


def share_of_step(kwargs: dict[str, Any], logits: Tensor) -> Tensor | float:
    """What this batch's tokens count in a step whose loss is a sum over all of its tokens; 1 for other models."""
    items, labels = kwargs.get("num_items_in_batch"), kwargs.get("labels")
    if items is None or labels is None or logits.dim() != 3:
        return 1.0
    share: Tensor = (labels[:, 1:] != IGNORED).sum() / items
    return share
