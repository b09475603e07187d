"""Sensitivity, |weight · gradient|: how much the loss would change, to first order, if a parameter were zero.

`sensitivity` is the mean over the adapter's own parameters (ElaLoRA, arXiv 2504.00254; the idea is AdaLoRA's, arXiv
2303.10512). `weight_sensitivity` is the mean of |W ∘ Ḡ| over the frozen matrix, Ḡ the averaged gradient (GoRA, arXiv
2502.12171). Both are means over entries, so neither a larger matrix nor a larger rank counts more by itself.
"""

import torch
from torch import Tensor

from rankwise.allocation.signals.base import SIGNALS, Averaged, Observed, Score, Signal, one_number_each


def adapter_sensitivities(observed: Observed) -> list[Tensor]:
    """Mean |w·g| over the entries of A and B together, (matrices,).

    At the first step B is zero, and so is the gradient of A: there is nothing to see before the second.
    """
    count = len(observed.lora_a)
    parameters = [*observed.lora_a, *observed.lora_b]
    products = torch._foreach_mul(parameters, [*observed.lora_a_gradients, *observed.lora_b_gradients])
    sums = torch.stack(list(torch._foreach_norm(products, 1)))
    entries = sums.new_tensor([a.numel() + b.numel() for a, b in zip(observed.lora_a, observed.lora_b, strict=True)])
    return [(sums[:count] + sums[count:]) / entries]


def weight_products(observed: Observed) -> list[Tensor]:
    """W ∘ G of every matrix, (out, in): W does not move, so its average is W ∘ Ḡ."""
    return [w.to(g) * g for w, g in zip(observed.weights, observed.gradients, strict=True)]


def mean_magnitudes(averaged: Averaged) -> list[Score]:
    """Mean absolute entry of each average."""
    values = list(averaged.values)
    sums = torch.stack(list(torch._foreach_norm(values, 1)))
    return list((sums / sums.new_tensor([v.numel() for v in values])).tolist())


SIGNALS.register("sensitivity")(
    Signal(
        "mean |weight x gradient| over the adapter's own parameters (ElaLoRA)",
        adapter_sensitivities,
        one_number_each,
        needs=frozenset({"adapter"}),
        least=2,
    )
)
SIGNALS.register("weight_sensitivity")(
    Signal(
        "mean |W x averaged gradient of W| (GoRA); keeps a gradient per matrix",
        weight_products,
        mean_magnitudes,
        needs=frozenset({"weight", "gradient"}),
    )
)
