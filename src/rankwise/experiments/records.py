"""What a finished run is. Plain data: no torch, so reports are rebuilt from the store alone."""

from dataclasses import dataclass, field
from typing import Literal

from rankwise.tasks.base import MetricValue

Status = Literal["running", "completed", "failed", "interrupted"]


@dataclass(frozen=True)
class RunRecord:
    """One run: a config and a seed, and what came of it.

    `parameters` counts the adapter parameters in the checkpoint, `peak_parameters` the most that were trained
    at once; `rank_pattern` maps module name to rank. `checkpoint` is a path relative to the store's folder. `costs` are
    what was counted when training was done (see `run_costs`); runs of earlier versions have none.
    """

    run_id: str
    method: str
    task: str
    model: str
    seed: int
    budget: str | None
    status: Status = "running"
    parameters: int = 0
    peak_parameters: int = 0
    metrics: dict[str, MetricValue] = field(default_factory=dict)
    train_seconds: float = 0.0
    steps: int = 0
    rank_pattern: dict[str, int] = field(default_factory=dict)
    checkpoint: str | None = None
    error: str | None = None
    costs: dict[str, float] = field(default_factory=dict)
    config: dict[str, object] = field(default_factory=dict)
    environment: dict[str, object] = field(default_factory=dict)
