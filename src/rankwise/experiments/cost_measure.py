"""All costs of one checkpoint, as plain data."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from rankwise.costs.activity import Activity, observe
from rankwise.costs.flops import count_flops
from rankwise.costs.latency import WARM_UP, measure
from rankwise.costs.memory import Peak, peak_of_process, peak_on_gpu, weight_bytes
from rankwise.costs.parameters import parameters_of
from rankwise.experiments.adapter_source import Source
from rankwise.experiments.cost_inputs import Inputs, Wanted, read_inputs
from rankwise.experiments.cost_subject import BASE, FUSED, Subject, load_subject, load_variant
from rankwise.experiments.environment import machine, versions

Data = dict[str, Any]


class Progress(Protocol):
    """Told what is being measured."""

    def __call__(self, what: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """A stretch of work of `total` steps; the function that it gives counts one."""


@dataclass(frozen=True)
class Measuring:
    """How costs are measured."""

    wanted: Wanted
    batch_sizes: tuple[int, ...]
    rounds: int
    model: str | None = None
    memory: bool = True


def measure_source(source: Source, how: Measuring, progress: Progress) -> Data:
    """Parameters, FLOPs, latency and memory of one checkpoint.

    Raises:
        ConfigError, DataError, ModelError: a checkpoint, base model or text that cannot be had, read or run.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with progress("loading", 1) as step:
        subject = load_subject(source, how.model)
        inputs = read_inputs(subject.base, source.record, how.wanted, device)
        for variant in subject.variants.values():
            variant.model.to(device)
        step()
    notes = list(subject.notes)
    record = source.record
    data: Data = {
        "checkpoint": str(source.folder),
        "run_id": record.run_id if record else None,
        "kind": subject.loader.label,
        "inputs": {"what": inputs.what, "examples": len(inputs.rows), "tokens": inputs.tokens},
        "parameters": _parameters(subject),
        **_computed(subject, inputs, progress),
        "latency": [_latency(subject, inputs, size, how.rounds, progress) for size in how.batch_sizes],
        "served": subject.served,
        "reference": subject.reference,
    }
    if how.memory:
        data["memory"] = _memory(subject, inputs, max(how.batch_sizes), progress)
    about = {"device": str(device), "threads": torch.get_num_threads(), "machine": machine(), "versions": versions()}
    return data | about | {"notes": notes}


def _parameters(subject: Subject) -> dict[str, int]:
    found = parameters_of(subject.own)
    return found.as_dict() | ({"trained": found.base + found.head} if subject.loader.whole else {})


def _computed(subject: Subject, inputs: Inputs, progress: Progress) -> Data:
    """FLOPs per example and what was open, text by text, so that no padding is in it."""
    batches = inputs.batches(1)
    with progress("counting FLOPs", 4) as step:
        flops = count_flops(subject.own, batches)
        step()
        alone = count_flops(subject.variants[BASE].model, batches).total
        step()
        served = count_flops(subject.variants[subject.served].model, batches).total
        step()
        activity = observe(subject.own, batches)
        step()
    count = len(batches)
    found = {
        "flops": {
            **{name: value / count for name, value in asdict(flops).items()},
            "total": flops.total / count,
            "base_alone": alone / count,
            "adapters_all_open": activity.all_open / count,
            "adapters_by_formula": activity.expected / count,
            "adapter_share": flops.share("adapters"),
            "routing_share": flops.share("routing"),
            "to_merged": flops.total / alone,
            "served_to_merged": served / alone,
            "to_unmerged": flops.total / (alone + activity.unmerged),
        }
    }
    return found | {"activity": _activity(activity) if activity.full else None}


def _activity(activity: Activity) -> Data:
    return {
        "decided": activity.decided,
        "share": activity.share,
        "total_rank": activity.total_rank,
        "full_rank": sum(activity.full.values()),
        "modules": {name: {"open": activity.open[name], "rank": activity.ranks[name]} for name in activity.full},
    }


def _latency(subject: Subject, inputs: Inputs, size: int, rounds: int, progress: Progress) -> Data:
    batches = inputs.batches(size)
    with progress(f"latency at batch size {size}", rounds + WARM_UP) as step:
        times = measure(subject.variants, batches, rounds, step=step)
    rows = {
        name: {
            "p50": times.percentile(name, 50),
            "p95": times.percentile(name, 95),
            "ratio": asdict(times.ratio(name, subject.reference)),
            "to_lora": asdict(times.ratio(name, FUSED)) if FUSED in times.seconds else None,
        }
        for name in subject.variants
    }
    return {"batch_size": size, "rounds": rounds, "variants": rows}


def _memory(subject: Subject, inputs: Inputs, size: int, progress: Progress) -> Data:
    """Peak memory at one batch size, of every variant but the fused one, which holds the same as PEFT's."""
    batches = inputs.batches(size)
    names = [name for name in subject.variants if name != FUSED]
    found: Data = {"batch_size": size, "variants": {}}
    with progress("peak memory", len(names)) as step:
        for name in names:
            peak = _peak(subject, name, batches)
            found["variants"][name] = {
                "weights": weight_bytes(subject.variants[name].model),
                "peak": peak.highest,
                "passes": peak.passes,
            }
            step()
    return found


def _peak(subject: Subject, name: str, batches: Sequence[Any]) -> Peak:
    load: Callable[[], nn.Module] = partial(load_variant, subject.loader, subject.ranks, name)
    if inputs_on_gpu(batches):
        return peak_on_gpu(subject.variants[name].model, batches)
    return peak_of_process(load, batches)


def inputs_on_gpu(batches: Sequence[Any]) -> bool:
    """Whether the models run on a GPU, where tensors are counted and no process of its own is needed."""
    return bool(next(iter(batches[0].values())).device.type == "cuda")
