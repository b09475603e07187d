"""Which checkpoint a command is about: a run of a run folder, a checkpoint folder, or one on the hub."""

from dataclasses import dataclass
from pathlib import Path

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from rankwise.adapters.checkpoint import CONFIG, find_folder, read_config
from rankwise.adapters.conditional import ConditionalPeftConfig
from rankwise.errors import ConfigError, Finding, OutputError, StoreError
from rankwise.experiments.compare import PLAN, STORE, read_plan
from rankwise.experiments.records import RunRecord
from rankwise.experiments.runner import CHECKPOINTS
from rankwise.experiments.store import Store


@dataclass(frozen=True)
class Choice:
    """How a run is picked out of a run folder; None leaves a criterion open."""

    run_id: str | None = None
    method: str | None = None
    seed: int | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing was chosen."""
        return self == Choice()

    def fits(self, record: RunRecord) -> bool:
        """Whether a run is one that was asked for; the beginning of its id will do."""
        return (
            (self.run_id is None or record.run_id.startswith(self.run_id))
            and (self.method is None or record.method == self.method)
            and (self.seed is None or record.seed == self.seed)
        )


@dataclass(frozen=True)
class Source:
    """A checkpoint folder, and the run that it came of where that is known."""

    folder: Path
    record: RunRecord | None = None

    @property
    def is_adapter(self) -> bool:
        """Whether it holds an adapter, and not a whole model."""
        return (self.folder / CONFIG).is_file()

    @property
    def conditional(self) -> type[ConditionalPeftConfig] | None:
        """The config class of an adapter that decides per input; None for one that does not.

        Raises:
            DataError: the config is damaged.
        """
        if not self.is_adapter:
            return None
        found = PEFT_TYPE_TO_CONFIG_MAPPING.get(str(read_config(self.folder).get("peft_type")))
        return found if found is not None and issubclass(found, ConditionalPeftConfig) else None


def find_source(text: str, choice: Choice | None = None) -> Source:
    """The checkpoint that `text` and `choice` mean.

    Raises:
        ConfigError: none or several runs of the folder are meant (all are listed).
        ModelError: there is no such checkpoint.
        OutputError, StoreError: a damaged run folder.
    """
    choice = choice or Choice()
    path = Path(text).expanduser()
    if (path / PLAN).is_file():
        return _choose(path, choice)
    if not choice.empty:
        message = "is no run folder, so there is nothing to choose by --run-id, --method or --seed"
        raise ConfigError(text, [Finding("", message)])
    folder = find_folder(text)
    root = folder.resolve().parent.parent
    if folder.resolve().parent.name == CHECKPOINTS and (root / PLAN).is_file():
        record = next((r for r in _records(root) if r.run_id == folder.resolve().name), None)
        return Source(folder, record)
    return Source(folder)


def _choose(root: Path, choice: Choice) -> Source:
    records = _records(root)
    if not records:
        raise OutputError(f"{root}: none of its runs is completed, so it holds no checkpoint yet")
    fitting = [record for record in records if choice.fits(record)]
    if len(fitting) != 1:
        what = "none of them is the one asked for" if not fitting else f"{len(fitting)} fit"
        rows = "\n".join(f"  {r.run_id}  {r.method}, seed {r.seed}{_budget(r)}{_metric(r)}" for r in records)
        message = f"holds {len(records)} runs, {what}; choose one with --run-id, or --method and --seed:\n{rows}"
        raise ConfigError(str(root), [Finding("", message)])
    (record,) = fitting
    folder = root / CHECKPOINTS / record.run_id
    if not folder.is_dir():
        raise OutputError(f"the checkpoint of run {record.run_id} is not at {folder}; was it moved?")
    return Source(folder, record)


def _records(root: Path) -> list[RunRecord]:
    """The completed runs of a run folder, from its store."""
    plan = read_plan(root)
    path = root / plan.get("store", STORE)
    if not path.is_file():
        raise StoreError(f"the results store of {root} is not at {path}")
    with Store(path) as store:
        found = [store.get(run_id) for run_id in plan["runs"]]
    return [record for record in found if record is not None and record.status == "completed"]


def _budget(record: RunRecord) -> str:
    return f", budget {record.budget}" if record.budget else ""


def _metric(record: RunRecord) -> str:
    name = next(iter(record.metrics), None)
    return f", {name} {record.metrics[name].value:.4g}" if name else ""
