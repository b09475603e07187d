"""How a run does while it trains, for whoever may want to give it up. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rankwise.tasks.base import Kind, MetricValue
from rankwise.tasks.metrics import decode, evaluate

if TYPE_CHECKING:
    from rankwise.training.watch import Watch


class GivenUp(Exception):
    """A run is stopped before its end on purpose, because others do better; the message says why."""


@dataclass(frozen=True)
class Watching:
    """Tells `report` the value of a metric at regular shares of training.

    `every` is the share between two measurements, `metric` a name in `tasks.metrics.METRICS`. `report` gets the number
    of the measurement (1, 2, …) and the value on the first evaluation split; it may raise `GivenUp`.
    """

    every: float
    metric: str
    report: Callable[[int, MetricValue], None]

    def watch(self, kind: Kind) -> "Watch":
        """The same for the trainer, which knows logits and no metrics."""
        from rankwise.training.watch import Watch

        def measured(number: int, logits: np.ndarray, references: np.ndarray) -> None:
            self.report(number, evaluate([self.metric], decode(kind, logits), references)[self.metric])

        return Watch(self.every, measured)
