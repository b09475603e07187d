"""From texts to batches: tokenised once, padded per batch, grouped by length in an order that only the seed decides."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def encode(data: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Dataset":
    """Token ids, attention mask, `labels` and `length` per example; texts longer than `max_length` tokens are cut.

    Args:
        data: columns `text`, optionally `text_pair`, and `label`.
    """
    from datasets import Dataset

    columns = [data["text"][:]] + ([data["text_pair"][:]] if "text_pair" in data.column_names else [])
    tokens = dict(tokenizer(*[list(c) for c in columns], truncation=True, max_length=max_length))
    lengths = [len(ids) for ids in tokens["input_ids"]]
    return Dataset.from_dict(tokens | {"labels": list(data["label"][:]), "length": lengths})


class LengthGroupedSampler(Sampler[int]):
    """Random batches of texts of similar length.

    The order of epoch e is a function of `seed` and e alone: not of the global random state, so that every method
    sees the same batches, nor of where a run was interrupted.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader when an epoch starts."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class SharedBatches(Sampler[list[int]]):
    """One process's parts of the batches that a single process would see.

    A batch too small to go round (the last one of an epoch) is split as evenly as it can be; a process that would get
    nothing takes all of it, so that every example still counts the same as the others in the sum over processes.

    Args:
        sampler: the order of all examples.
        batch_size: of the whole batches.
        process: number of this process.
        processes: how many there are.
    """

    def __init__(self, sampler: LengthGroupedSampler, batch_size: int, process: int, processes: int) -> None:
        self.sampler, self.batch_size, self.process, self.processes = sampler, batch_size, process, processes

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer when an epoch starts."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        for start in range(0, len(order), self.batch_size):
            yield self._part(order[start : start + self.batch_size])

    def _part(self, batch: list[int]) -> list[int]:
        if len(batch) <= self.process:
            return batch
        least, more = divmod(len(batch), self.processes)
        start = self.process * least + min(self.process, more)
        return batch[start : start + least + (self.process < more)]
