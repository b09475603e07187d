"""What a module's name says about it: its family, its block, attention or feed-forward.

A family is one kind of matrix in all blocks (`encoder.layer.attention.self.query`). Names are those of Transformers:
numbers count blocks (and experts, or sub-layers inside a block), and attention says so somewhere in its path
(`attention.self.query`, `self_attn.q_proj`, `attn.c_attn`, `SelfAttention.q`), or its leaf is a query, key or value.
"""

import re

_LIST = re.compile(r"attn|attentions?")
_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
_FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|^ff$", re.IGNORECASE)
_LEAF = re.compile(
    r"(?:w?(?:q|k|v|qk|kv|qkv)|query|key|value|query_?key_?value)(?:_?(?:proj|lin|linear|head))?", re.IGNORECASE
)


def family(name: str) -> str:
    """`name` without its numbers: the same for this matrix in every block."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


def block_index(name: str) -> int | None:
    """The first number in the dotted name, 0-based: which block the matrix is in; None outside numbered blocks."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def is_attention(name: str) -> bool:
    """Whether a matrix is one of attention's projections (in or out); all others in a block are feed-forward.

    Only what stands after the block's number counts, so a model may call itself or its blocks what it likes (but XLM
    keeps its attentions in a list of that name). The innermost part that tells decides: RWKV's `feed_forward.key` is
    none, nor is an MLP inside a cross-attention block.
    """
    parts = name.split(".")
    start = next((i + 1 for i, part in enumerate(parts) if part.isdigit()), 0)
    for part in reversed(parts[start:]):
        if _ATTENTION.search(part):
            return True
        if _FEED_FORWARD.search(part):
            return False
    return bool((start > 1 and _LIST.fullmatch(parts[start - 2])) or _LEAF.fullmatch(parts[-1]))
