"""Which tokens of an example a decision is made from: padding never, and no token that is being learned."""

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""Label of a token without a loss, in causal language models: the prompt."""
NO_PROMPT = (
    "labels mark no prompt (-100 before the first token to learn), so adapters decide from all tokens of an example in "
    "training, those it is to predict included; in generation they decide from the prompt alone"
)


def token_weights(
    given: Mapping[str, Any], inputs: Tensor | None, *, prompts: bool
) -> tuple[Tensor | None, Tensor | None]:
    """What every token counts in the mean of its example.

    A causal model that is trained to go on from a prompt will have to decide from the prompt alone: what comes before
    the first token with a loss counts, and all real tokens where there is nothing before it.

    Args:
        given: the model's arguments.
        inputs: token ids (batch, tokens) or embeddings (batch, tokens, width); None if there are none.
        prompts: whether labels, where they are given, tell prompts from answers.

    Returns:
        (batch, tokens), rows sum to 1; None means all alike. And (batch,), the examples whose labels mark a prompt;
        None where that was not looked for.
    """
    if inputs is None:
        return None, None
    batch, tokens = inputs.shape[:2]
    mask, labels = _key_mask(given.get("attention_mask"), tokens), given.get("labels")
    if not prompts or labels is None or labels.shape != (batch, tokens):
        return (None, None) if mask is None else (_normalised(mask), None)
    counts = torch.ones(batch, tokens, device=inputs.device) if mask is None else mask
    prompt = counts * (labels == IGNORED).cumprod(1)
    marked = prompt.any(1)
    return _normalised(torch.where(marked[:, None], prompt, counts)), marked


def warn_of_no_prompt(marked: Tensor) -> bool:
    """Warn if an example marks no prompt; returns whether it did."""
    if bool(marked.all()):
        return False
    warnings.warn(NO_PROMPT, stacklevel=2)
    return True


def by_example(x: Tensor, count: int) -> Tensor:
    """(examples · tokens, width) as (examples, tokens, width), where it came flattened; `count` may be 0."""
    return x.view(count, len(x) // max(count, 1), x.shape[-1]) if x.dim() == 2 else x


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast: decisions are made in the precision of the router."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _key_mask(mask: Tensor | Mapping[str, Tensor] | None, tokens: int) -> Tensor | None:
    """1 for real tokens, 0 for padding, (batch, tokens) float; None without a mask.

    Of masks made ready for attention (a static cache makes them, one per kind of layer perhaps), what the last token
    may look at.
    """
    if isinstance(mask, Mapping):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if mask is None:
        return None
    if mask.dim() == 2:
        return mask[:, -tokens:].ne(0).float()
    last = (mask[:, 0] if mask.dim() == 4 else mask)[:, -1, :tokens]
    return (last > torch.finfo(last.dtype).min / 2 if last.is_floating_point() else last.ne(0)).float()


def _normalised(counts: Tensor) -> Tensor:
    weights: Tensor = counts / counts.sum(1, keepdim=True).clamp_min(1)
    return weights
