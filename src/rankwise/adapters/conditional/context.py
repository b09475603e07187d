"""What the layers of a model share while one forward pass goes on: the mask, the phase, and decisions already made.

A forward pre-hook on the base model fills it in, so that it is there however the model is called: through PEFT or past
it, in training, under gradient checkpointing (blocks are run again in the backward pass, long after PEFT's own hooks
are gone), in `generate`.
"""

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.errors import ModelError

_ATTRIBUTE = "_rankwise_context"
IGNORED = -100
"""Label of a token without a loss, in causal language models: the prompt."""

Key = tuple[str, str]
"""Module and adapter."""


class Context:
    """One per base model; see the module.

    `temperature`, `price` and `all_open` are a training method's to set: how soft probabilities are, what logits are
    measured against, and whether gates are held open while adapters warm up. `recording` makes it keep what routers see:
    `recorded` that of all training passes until somebody clears it, `seen` that of the last pass in inference.
    `kept` holds the decisions of the last pass in inference, by module and adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        self.temperature = 1.0
        self.price = 0.0
        self.all_open = False
        self.recording = False
        self.recorded: dict[Key, list[Tensor]] = {}
        self.seen: dict[Key, Tensor] = {}
        self.rows: Mapping[str, Tensor] = {}
        self._signature = inspect.signature(model.forward)
        self._tokens: Tensor | None = None  # (batch, tokens), what each token counts in a mean
        self.kept: dict[Key, Any] = {}
        self.shared: dict[str, Tensor] = {}
        self._decoding = False
        self._batch = 0
        self._passes: int | None = None  # forward passes since `session` began, if one goes on
        self._pooled: tuple[weakref.ref[Tensor], str | None, Tensor] | None = None

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the base model."""
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        inputs = next((given[n] for n in ("input_ids", "inputs_embeds") if given.get(n) is not None), None)
        batch = 0 if inputs is None else len(inputs)
        later = self._passes is not None and self._passes > 0
        self._decoding = not module.training and bool(self.kept) and batch == self._batch and (later or _past(given))
        self._pooled = None
        if not self._decoding:
            self.kept, self.shared = {}, {}
            self._tokens = _token_weights(given, inputs)
        self._batch = batch
        if self._passes is not None:
            self._passes += 1

    @contextmanager
    def session(self, adapter_names: Sequence[str] | None) -> Iterator[None]:
        """One call of a PEFT model, forward or generate; within it, decisions of the first pass hold for all.

        Args:
            adapter_names: the adapter of every example, in a mixed batch.
        """
        self._passes = 0
        names = list(adapter_names or ())
        self.rows = {n: torch.tensor([i for i, other in enumerate(names) if other == n]) for n in dict.fromkeys(names)}
        try:
            yield
        finally:
            self._passes, self.rows = None, {}

    def decision(self, key: Key, decide: Callable[[], Any], *, training: bool) -> Any:  # noqa: ANN401 - the caller's
        """What `decide` returns, or what it returned when the prompt was read, while tokens are being generated."""
        if self._decoding and key in self.kept:
            return self.kept[key]
        made = decide()
        if not training:
            self.kept[key] = made
        return made

    def pool(self, x: Tensor, adapter: str | None = None) -> Tensor:
        """Mean of `x` over real tokens, without a graph; computed once for layers that share their input.

        Args:
            x: (batch, tokens, in); in a mixed batch the examples of `adapter` alone.
            adapter: whose examples these are.

        Returns:
            (batch, in).

        Raises:
            ModelError: the layer's input has another shape than the model's tokens.
        """
        if self._pooled is not None and self._pooled[0]() is x and self._pooled[1] == adapter:
            return self._pooled[2]
        pooled = self._mean(x.detach(), adapter)
        self._pooled = (weakref.ref(x), adapter, pooled)
        return pooled

    def record(self, key: Key, pooled: Tensor, *, training: bool) -> None:
        """Keep a router's input, if that is wanted; not when a block is run again in the backward pass."""
        if not self.recording or torch._C._current_graph_task_id() != -1:
            return
        if training:
            self.recorded.setdefault(key, []).append(pooled)
        else:
            self.seen[key] = pooled

    def _mean(self, x: Tensor, adapter: str | None) -> Tensor:
        if x.dim() != 3:
            raise ModelError(
                f"adapters that decide per input need inputs of shape (batch, tokens, features); a target module gets "
                f"{tuple(x.shape)}: leave it out of target_modules"
            )
        tokens = self._tokens
        if tokens is None:
            return x.mean(1)
        if adapter is not None and adapter in self.rows:
            tokens = tokens[self.rows[adapter].to(tokens.device)]
        if tokens.shape != x.shape[:2]:
            raise ModelError(
                f"cannot tell which tokens are padding: the attention mask is for {tuple(tokens.shape)} tokens, a "
                f"target module sees {tuple(x.shape[:2])}; leave it out of target_modules"
            )
        return torch.bmm(tokens.to(x.dtype)[:, None, :], x)[:, 0]


def context_of(model: nn.Module) -> Context:
    """The context of a base model, made and hooked in if there is none."""
    found: Context | None = getattr(model, _ATTRIBUTE, None)
    if found is None:
        found = Context(model)
        object.__setattr__(model, _ATTRIBUTE, found)
        model.register_forward_pre_hook(found.begin, with_kwargs=True)
    return found


def drop_context(model: nn.Module) -> None:
    """Take the context off a base model that no longer carries conditional adapters."""
    found: Context | None = getattr(model, _ATTRIBUTE, None)
    if found is None:
        return
    for handle, hook in list(model._forward_pre_hooks.items()):
        if getattr(hook, "__self__", None) is found:
            del model._forward_pre_hooks[handle]
            model._forward_pre_hooks_with_kwargs.pop(handle, None)
    object.__delattr__(model, _ATTRIBUTE)


def _past(given: Mapping[str, Any]) -> bool:
    """Whether tokens of this text were read before."""
    cache = given.get("past_key_values")
    length = getattr(cache, "get_seq_length", lambda: 0)() if cache is not None else 0
    return bool(length > 0)


def _token_weights(given: Mapping[str, Any], inputs: Tensor | None) -> Tensor | None:
    """What every token counts in the mean of its text: padding nothing, and the answer that is being learned neither.

    A causal model that is trained to go on from a prompt will have to decide from the prompt alone; tokens with a loss
    are left out, where the labels leave any.
    """
    mask = given.get("attention_mask")
    if inputs is None or (mask is not None and mask.dim() != 2):
        return None
    tokens = inputs.shape[1]
    labels = given.get("labels")
    prompt = labels == IGNORED if labels is not None and labels.shape == inputs.shape[:2] else None
    if mask is None and prompt is None:
        return None
    counts = torch.ones(inputs.shape[:2], device=inputs.device) if mask is None else mask[:, -tokens:].float()
    if prompt is not None:
        of_prompt = counts * prompt
        counts = torch.where(of_prompt.any(1, keepdim=True), of_prompt, counts)
    total: Tensor = counts.sum(1, keepdim=True).clamp_min(1)
    return counts / total
