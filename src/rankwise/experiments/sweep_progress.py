"""Progress of a sweep's trials: that of runs, under the names of the trials."""

from dataclasses import replace

from rankwise.experiments.progress import Relay, Reporter
from rankwise.experiments.records import RunRecord
from rankwise.experiments.sweep_space import Values, in_words


class TrialReporter(Relay):
    """Says which trial a run is and what was chosen for it."""

    def __init__(self, inner: Reporter, ticket: int, values: Values) -> None:
        super().__init__(inner)
        self._name = f"trial {ticket}: {in_words(values)}"

    def begin(self, name: str, steps: int) -> None:
        """A trial of `steps` optimizer steps starts."""
        super().begin(self._name, steps)

    def end(self, record: RunRecord, *, reused: bool) -> None:
        """The trial is finished, or was found finished."""
        super().end(replace(record, method=f"{self._name}: {record.method}"), reused=reused)

    def skip(self, text: str) -> None:
        """The trial is not to be finished; why."""
        super().skip(f"{self._name}: {text}")
