"""Progress of a sweep's trials: that of runs, under the names of the trials."""

from dataclasses import replace

from rankwise.experiments.progress import TrialsReporter
from rankwise.experiments.records import RunRecord
from rankwise.experiments.sweep_space import Values, in_words


class TrialReporter:
    """Passes on what a run tells, and says which trial it is and what was chosen for it."""

    def __init__(self, inner: TrialsReporter, ticket: int, values: Values) -> None:
        self._inner, self._name = inner, f"trial {ticket}: {in_words(values)}"

    def begin(self, name: str, steps: int) -> None:
        """A trial of `steps` optimizer steps starts."""
        self._inner.begin(self._name, steps)

    def step(self, step: int, loss: float | None) -> None:
        """A step is done."""
        self._inner.step(step, loss)

    def end(self, record: RunRecord, *, reused: bool) -> None:
        """The trial is finished, or was found finished."""
        self._inner.end(replace(record, method=f"{self._name}: {record.method}"), reused=reused)

    def skip(self, text: str) -> None:
        """The trial is not to be finished; why."""
        self._inner.skip(f"{self._name}: {text}")
