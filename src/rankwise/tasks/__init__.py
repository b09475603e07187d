"""What is learned: one file per family of tasks. Importing this package registers them all."""

from rankwise.tasks import docstrings, files, glue
from rankwise.tasks.base import TASKS, Kind, MetricValue, TaskConfig, TaskData
from rankwise.tasks.families import canonical_task, parse_task_spec

__all__ = [
    "TASKS",
    "Kind",
    "MetricValue",
    "TaskConfig",
    "TaskData",
    "canonical_task",
    "docstrings",
    "files",
    "glue",
    "parse_task_spec",
]
