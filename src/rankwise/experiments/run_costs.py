"""What is counted when a run is done, before its model goes: what it costs, and whether scores told the truth.

    inference_flops   FLOPs per evaluation text, as it would be served: static adapters merged, decisions executed
    active_share      adapted modules (or blocks) that an evaluation text uses, as a share of those training began with
    total_rank        components that an evaluation text uses, summed over modules
    peak_memory_bytes most that was held at once in training and evaluation: by tensors on a GPU (of the first process),
                      by the process, libraries included, on a CPU; absent where the system cannot tell
    premise           Spearman correlation over modules: score at the last allocation, and how much the evaluation loss
                      rises when that module's adapter is removed

FLOPs are counted on the same few texts for every run of a task, one by one, so that no padding is in them. `premise`
takes a pass over up to `REMOVAL_EXAMPLES` evaluation examples per module; it is measured if the config asks for it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.conditional.config import ConditionalPeftConfig
from rankwise.adapters.contract import Method
from rankwise.costs.activity import observe
from rankwise.costs.flops import count_flops
from rankwise.costs.twins import merged
from rankwise.experiments.schema import RunConfig
from rankwise.tasks.base import Kind
from rankwise.tasks.data import stratified_sample
from rankwise.training.preparation import same_random_state

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from rankwise.training.fit import Fitted

COUNTED_TEXTS = 32
REMOVAL_EXAMPLES = 200
FEWEST = 4
"""Modules with a score below which a correlation says nothing."""

Batch = dict[str, Tensor]
_BASE: dict[tuple[str, str], float] = {}
"""FLOPs per text of a base model, by data and model: the same for every static method, so counted once."""


@dataclass(frozen=True)
class Trained:
    """What training leaves behind.

    Args:
        method: with its model.
        fitted: predictions and losses.
        steps: optimizer steps.
        kind: of the task.
        tokenizer: pads.
        split: the first evaluation split, encoded.
        key: stands for its examples and the base model.
        peak_memory: bytes, where the system tells.
    """

    method: Method
    fitted: "Fitted"
    steps: int
    kind: Kind
    tokenizer: "PreTrainedTokenizerBase"
    split: "Dataset"
    key: tuple[str, str]
    peak_memory: int | None = None


def costs_of(config: RunConfig, trained: Trained, scores: Mapping[str, float]) -> dict[str, float]:
    """All of the above that can be said of a run; of inference nothing where weights are spread over processes.

    Args:
        config: of the run.
        trained: what it made.
        scores: by module, those of the last allocation.
    """
    model, size = trained.method.model, config.evaluation.batch_size
    memory = {} if trained.peak_memory is None else {"peak_memory_bytes": float(trained.peak_memory)}
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return memory
    training = model.training
    model.eval()
    try:
        with same_random_state(), torch.no_grad():
            found = memory | inference_costs(trained, size)
            return found | (premise(trained, scores, size) if config.evaluation.premise else {})
    finally:
        model.train(training)


def inference_costs(trained: Trained, batch_size: int) -> dict[str, float]:
    """`inference_flops`, and for adapters `active_share` and `total_rank`; the model is in evaluation mode."""
    model, split = trained.method.model, trained.split
    texts = list(batches(trained, _spread(len(split), COUNTED_TEXTS), 1))
    if not isinstance(model, PeftModel) or not isinstance(model.active_peft_config, ConditionalPeftConfig):
        return {"inference_flops": _base_flops(model, texts, trained.key)} | _static(trained.method)
    served = merged(model) if getattr(model.active_peft_config, "blocks", None) else model
    activity = observe(model, batches(trained, range(len(split)), batch_size))
    return {
        "inference_flops": count_flops(served, texts).total / len(texts),
        "active_share": activity.share,
        "total_rank": activity.total_rank,
    }


def premise(trained: Trained, scores: Mapping[str, float], batch_size: int) -> dict[str, float]:
    """`premise` and the number of modules behind it; empty without scores, or where they or the losses are all equal.

    Args:
        trained: its model carries plain LoRA layers and is in evaluation mode.
        scores: by module, those of the last allocation.
        batch_size: examples per pass.
    """
    from scipy.stats import spearmanr

    model = trained.method.model
    layers = adapted_layers(model) if isinstance(model, PeftModel) else {}
    names = [name for name, score in scores.items() if name in layers and math.isfinite(score)]
    if len(names) < FEWEST or len({scores[name] for name in names}) < 2:
        return {}
    count = min(REMOVAL_EXAMPLES, len(trained.split))
    lengths = trained.split["length"][:]
    chosen = stratified_sample(trained.split["labels"][:], count, trained.kind).tolist()
    chosen.sort(key=lambda place: lengths[place])  # little padding
    given = list(batches(trained, chosen, batch_size, labels=True))
    whole, rises = _loss(model, given), []
    for name in names:
        with _removed(layers[name]):
            rises.append(_loss(model, given) - whole)
    if len(set(rises)) < 2:
        return {}
    correlation = float(spearmanr([scores[name] for name in names], rises).statistic)
    return {"premise": correlation, "premise_modules": float(len(names))}


def batches(trained: Trained, order: Sequence[int], size: int, *, labels: bool = False) -> Iterator[Batch]:
    """Padded batches of the split on the model's device."""
    from transformers import DataCollatorWithPadding

    collate = DataCollatorWithPadding(trained.tokenizer)
    device = next(trained.method.model.parameters()).device
    rows = trained.split.remove_columns(["length"] if labels else ["labels", "length"])
    for start in range(0, len(order), size):
        chosen = rows.select(list(order[start : start + size]))
        yield {name: value.to(device) for name, value in collate(list(chosen)).items()}


def _spread(count: int, wanted: int) -> list[int]:
    """`wanted` places from 0 to count - 1, evenly."""
    return sorted({int(place) for place in np.linspace(0, count - 1, min(count, wanted))})


def _base_flops(model: nn.Module, texts: Sequence[Batch], key: tuple[str, str]) -> float:
    if key not in _BASE:
        with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
            _BASE[key] = count_flops(model, texts).total / len(texts)
    return _BASE[key]


def _static(method: Method) -> dict[str, float]:
    """Live modules and ranks of an adapter that is the same for every input."""
    ranks = method.rank_pattern()
    if not ranks:
        return {}
    live = sum(rank > 0 for rank in ranks.values())
    return {"active_share": live / len(ranks), "total_rank": float(sum(ranks.values()))}


def _loss(model: nn.Module, given: Sequence[Batch]) -> float:
    """Mean over examples, without any penalty of a method."""
    total = sum(float(model(**batch).loss) * len(batch["labels"]) for batch in given)
    return total / sum(len(batch["labels"]) for batch in given)


@contextmanager
def _removed(layer: Any) -> Iterator[None]:  # noqa: ANN401 - a LoRA layer
    """A layer without its adapter: a zero lora_B, put back afterwards."""
    weight = layer.lora_B[ADAPTER].weight
    kept = weight.detach().clone()
    weight.zero_()
    try:
        yield
    finally:
        weight.copy_(kept)
