"""Closed formulas: what a product of matrices, an adapter and attention take, and what a network of such sizes holds.

A multiplication and an addition are two FLOPs. Products of matrices are all that counts: everything else of a
Transformer is below one percent of them.
"""

from collections.abc import Iterable

from rankwise.adapters.attach import Matrix


def linear_flops(tokens: int, in_features: int, out_features: int) -> int:
    """x Wᵀ for `tokens` rows: 2 · tokens · in · out."""
    return 2 * tokens * in_features * out_features


def adapter_flops(tokens: int, rank: int, in_features: int, out_features: int) -> int:
    """(x Aᵀ) Bᵀ: 2 · tokens · rank · (in + out)."""
    return 2 * tokens * rank * (in_features + out_features)


def attention_flops(batch: int, queries: int, keys: int, width: int) -> int:
    """Q Kᵀ and the sum over values, all heads together `width` wide: 4 · batch · queries · keys · width.

    A causal mask saves nothing here: as executed by a kernel that does not skip blocks, and as FlopCounterMode counts.
    """
    return 4 * batch * queries * keys * width


def router_flops(in_features: int, hidden: int, outputs: int = 1) -> int:
    """One example through in -> hidden -> outputs: 2 · hidden · (in + outputs)."""
    return 2 * hidden * (in_features + outputs)


def generator_flops(examples: int, components: int, in_features: int, out_features: int, middle: int | None) -> int:
    """Writing `components` pairs of factors in all, for `examples` inputs: 2 · components · (in + out) · in.

    With a factorised network of width `middle`: 2 · middle · (examples · in + components · (in + out)).
    """
    written = 2 * components * (in_features + out_features)
    if middle is None:
        return written * in_features
    return written * middle + 2 * examples * in_features * middle


def pooling_flops(tokens: int, in_features: int) -> int:
    """The weighted mean of one example's tokens, as a product of (1, tokens) and (tokens, in)."""
    return 2 * tokens * in_features


def adapter_share(matrices: Iterable[Matrix], rank: int) -> float:
    """Adapters' FLOPs over those of the linear layers they sit on: Σ r (in + out) / Σ in · out, whatever the tokens."""
    sizes = list(matrices)
    return sum(rank * m.cost for m in sizes) / sum(m.in_features * m.out_features for m in sizes)


def bert_block(width: int) -> list[Matrix]:
    """The six matrices of a block of BERT (Devlin et al. 2019): query, key, value, output, and two 4 times as wide."""
    square = [Matrix(name, width, width) for name in ("query", "key", "value", "output")]
    return [*square, Matrix("up", width, 4 * width), Matrix("down", 4 * width, width)]
