"""Progress of a plan's runs: that of runs, under the names of their arms."""

import json
from collections.abc import Iterable
from dataclasses import replace

from rankwise.experiments.plan_runs import PlannedRun
from rankwise.experiments.progress import Relay, Reporter
from rankwise.experiments.records import RunRecord


class ArmReporter(Relay):
    """A finished run goes by its arm, which says more than its method.

    Args:
        inner: is told.
        runs: of the plan; trials of its tuning, which differ in what is not the method, are known by them too.
    """

    def __init__(self, inner: Reporter, runs: Iterable[PlannedRun]) -> None:
        super().__init__(inner)
        self._arms: dict[str, set[str]] = {}
        for run in runs:
            self._arms.setdefault(_key(run.config.method.model_dump(mode="json")), set()).add(run.arm)

    def end(self, record: RunRecord, *, reused: bool) -> None:
        """A run is finished, or was found finished."""
        arms = self._arms.get(_key(record.config.get("method")), {record.method})
        super().end(replace(record, method=", ".join(sorted(arms))), reused=reused)


def _key(method: object) -> str:
    return json.dumps(method, sort_keys=True)
