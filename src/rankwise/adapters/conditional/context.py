"""What the layers of a model share while one forward pass goes on: the mask, the phase, and decisions already made.

A forward pre-hook on the base model fills it in, so that it is there however the model is called: through PEFT or past
it, in training, under gradient checkpointing (blocks are run again in the backward pass, long after PEFT's own hooks
are gone), in `generate`.

What belongs to one pass in training (token weights, outputs of a shared router) is kept for a while under the sequence
number that autograd had reached when it began. Nodes are numbered in the order in which they are made, so a block that
is run again finds its pass by the number of the node that asks for it, however many passes came between. In inference
decisions are kept with the cache of keys and values, so that texts generated in turns keep their own.
"""

import inspect
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.adapters.attach import task_type
from rankwise.adapters.conditional.tokens import full_precision, token_weights, warn_of_no_prompt
from rankwise.errors import ModelError, TrainingError

_ATTRIBUTE = "_rankwise_context"
_KEPT = "_rankwise_decisions"
REPLICA = (
    "adapters that decide per input do not run under torch.nn.DataParallel, whose copies of the model would share "
    "their decisions (a Trainer uses it where one process sees several GPUs): start one process per GPU with torchrun, "
    "or show it one of them with CUDA_VISIBLE_DEVICES=0"
)
PASSES = 16
"""Forward passes in training that may wait for their backward pass under gradient checkpointing."""

Key = tuple[str, str]
"""Module and adapter."""


@dataclass
class _Pass:
    """One forward pass. `first` is the sequence number of autograd when it began; `grad` whether it makes a graph."""

    shape: tuple[int, int] = (0, 0)
    tokens: Tensor | None = None  # (batch, tokens), what each token counts in a mean
    first: int = 0
    grad: bool = False
    shared: dict[str, Tensor] = field(default_factory=dict)
    deciders: dict[str, str] = field(default_factory=dict)


class Context:
    """One per base model; see the module.

    `temperature`, `price`, `all_open` and `full_rows` are a training method's to set: how soft probabilities are, what
    logits are measured against, whether gates are held open while adapters warm up, and the share of inputs that keep
    every block in training. `recording` makes it keep what routers
    see: `recorded` that of all training passes until somebody clears it, `seen` that of the last pass in inference.
    `kept` holds the decisions of the last pass in inference, by module and adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        self.temperature = 1.0
        self.price = 0.0
        self.all_open = False
        self.full_rows = 0.0
        self.recording = False
        self.recorded: dict[Key, list[Tensor]] = {}
        self.seen: dict[Key, Tensor] = {}
        self.rows: Mapping[str, Tensor] = {}
        self.kept: dict[Key, Any] = {}
        self._signature = inspect.signature(model.forward)
        self._prompts = task_type(model) == "CAUSAL_LM"
        self._warned = False
        self._last = _Pass()
        self._waiting: deque[_Pass] = deque(maxlen=PASSES)
        self._decoding = False
        self._passes: int | None = None  # forward passes since `session` began, if one goes on
        self._pooled: tuple[weakref.ref[Tensor], str | None, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies: what belongs to a pass stays behind; decisions made with gradients hold its graph."""
        fresh = {
            "_last": _Pass(),
            "_waiting": deque(maxlen=PASSES),
            "_pooled": None,
            "_passes": None,
            "_decoding": False,
        }
        return self.__dict__ | fresh | {"kept": {}, "seen": {}, "recorded": {}, "rows": {}}

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the base model.

        Raises:
            TrainingError: the model is one of several copies that run at once.
        """
        if getattr(module, "_is_replica", False):  # torch's own mark
            raise TrainingError(REPLICA)
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        inputs = next((given[n] for n in ("input_ids", "inputs_embeds") if given.get(n) is not None), None)
        shape = (0, 0) if inputs is None else (inputs.shape[0], inputs.shape[1])
        before = self._before(given.get("past_key_values"), shape[0]) if not module.training else None
        self._decoding = before is not None
        self.kept = {} if before is None else before
        tokens = None if self._decoding else self._tokens(given, inputs)
        self._last, self._pooled = _Pass(shape, tokens), None
        if module.training and torch.is_grad_enabled():
            self._last.first, self._last.grad = _sequence_number(), True
            self._waiting.append(self._last)
        if self._passes is not None:
            self._passes += 1

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401 - a model's
        """Forward hook of the base model: decisions go with the cache of the tokens they were made from."""
        cache = None if module.training else getattr(output, "past_key_values", None)
        if hasattr(cache, "get_seq_length"):
            setattr(cache, _KEPT, (self._last.shape[0], self.kept))

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

    @property
    def shared(self) -> dict[str, Tensor]:
        """What shared routers said in the pass that goes on, or whose blocks are run again: by adapter."""
        return self._run().shared

    def decides(self, name: str, adapter: str) -> bool:
        """Whether module `name` is the one that asks a shared router: the first that runs, also when it runs again."""
        return self._run().deciders.setdefault(adapter, name) == name

    @property
    def sees_no_graph(self) -> bool:
        """Whether a block runs without a graph in a pass that makes one: reentrant gradient checkpointing."""
        return self._last.grad and not torch.is_grad_enabled()

    def decision(self, key: Key, decide: Callable[[], Any], *, training: bool) -> Any:  # noqa: ANN401 - the caller's
        """What `decide` returns, or what it returned when the prompt was read, while tokens are being generated."""
        if self._decoding and key in self.kept:
            return self.kept[key]
        made = decide()
        if not training:
            self.kept[key] = made
        return made

    def pool(self, x: Tensor, adapter: str | None = None, name: str = "a target module") -> Tensor:
        """Mean of `x` over real tokens, without a graph; computed once for layers that share their input.

        Args:
            x: (batch, tokens, in), or flattened to (batch · tokens, in); in a mixed batch that of `adapter` alone.
            adapter: whose examples these are.
            name: of the layer, for messages.

        Returns:
            (batch, in).

        Raises:
            ModelError: the layer's input has another shape than the model's tokens.
        """
        if self._pooled is not None and self._pooled[0]() is x and self._pooled[1] == adapter:
            return self._pooled[2]
        pooled = self._mean(x.detach(), adapter, name)
        self._pooled = (weakref.ref(x), adapter, pooled)
        return pooled

    def record(self, key: Key, pooled: Tensor, *, training: bool) -> None:
        """Keep a router's input, if that is wanted; not when a block is run again in the backward pass."""
        if not self.recording or torch._C._current_graph_task_id() != -1:
            return
        if not training:
            self.seen[key] = pooled
        elif len(pooled):  # a mean over no examples is no number
            self.recorded.setdefault(key, []).append(pooled)

    def _run(self) -> _Pass:
        """The pass that goes on; in a backward pass, the one whose block is run again.

        Raises:
            TrainingError: too many other passes came between.
        """
        if torch._C._current_graph_task_id() == -1:
            return self._last
        node = torch._C._current_autograd_node()
        number = node._sequence_nr() if node is not None else self._last.first
        found = next((each for each in reversed(self._waiting) if each.first <= number), None)
        if found is None:
            raise TrainingError(
                f"gradient checkpointing runs a block again, and more than {PASSES} other forward passes came between: "
                "call backward() earlier, or do without gradient checkpointing"
            )
        return found

    def _before(self, cache: Any, batch: int) -> dict[Key, Any] | None:  # noqa: ANN401 - Transformers' cache, or None
        """Decisions that hold already, if these tokens go on from others."""
        grown = getattr(cache, "get_seq_length", lambda: 0)() > 0
        made_for, kept = getattr(cache, _KEPT, (self._last.shape[0], self.kept)) if grown else (0, {})
        if hasattr(cache, _KEPT) and kept and made_for != batch:
            raise ModelError(
                f"the cache holds {made_for} examples that were decided on, and {batch} go on from it; give the model "
                "the whole prompts of all of them"
            )
        if not grown and self._passes:
            made_for, kept = self._last.shape[0], self.kept
        return kept if kept and made_for == batch else None

    def _tokens(self, given: Mapping[str, Any], inputs: Tensor | None) -> Tensor | None:
        tokens, marked = token_weights(given, inputs, prompts=self._prompts)
        if marked is not None and not self._warned:
            self._warned = warn_of_no_prompt(marked)
        return tokens

    def _mean(self, x: Tensor, adapter: str | None, name: str) -> Tensor:
        run = self._run()
        batch, length = run.shape
        if x.dim() == 2 and len(x) == batch * length:
            x = x.view(batch, length, x.shape[-1])
        if x.dim() != 3:
            raise ModelError(
                f"adapters that decide per input need inputs of shape (batch, tokens, features); {name} gets "
                f"{tuple(x.shape)}: leave it out of target_modules"
            )
        tokens, expected = run.tokens, run.shape
        if adapter is not None and adapter in self.rows:
            rows = self.rows[adapter]
            expected = (len(rows), length)
            tokens = None if tokens is None else tokens[rows.to(tokens.device)]
        if batch and x.shape[:2] != expected:
            raise ModelError(
                f"cannot tell which tokens belong to which example: {name} sees {tuple(x.shape[:2])} examples and "
                f"tokens, the model {expected}; leave it out of target_modules"
            )
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if tokens is None:
            return x.mean(1)
        with full_precision(x.device):
            return torch.bmm(tokens.to(device=x.device, dtype=x.dtype)[:, None, :], x)[:, 0]


def context_of(model: nn.Module) -> Context:
    """The context of a base model, made and hooked in if there is none."""
    found: Context | None = getattr(model, _ATTRIBUTE, None)
    if found is None:
        found = Context(model)
        object.__setattr__(model, _ATTRIBUTE, found)
        model.register_forward_pre_hook(found.begin, with_kwargs=True)
        model.register_forward_hook(found.end)
    return found


def drop_context(model: nn.Module) -> None:
    """Take the context off a base model that no longer carries conditional adapters."""
    found: Context | None = getattr(model, _ATTRIBUTE, None)
    if found is None:
        return
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for handle, hook in list(hooks.items()):
            if getattr(hook, "__self__", None) is found:
                del hooks[handle]
                model._forward_pre_hooks_with_kwargs.pop(handle, None)
    object.__delattr__(model, _ATTRIBUTE)


def _sequence_number() -> int:
    """What autograd numbers its next node with, or a little less."""
    with torch.enable_grad():
        node = torch.ones((), requires_grad=True).view(()).grad_fn
    assert node is not None
    return int(node._sequence_nr())
