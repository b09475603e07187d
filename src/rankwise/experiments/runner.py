"""One run: the only place where config, task, model, method, trainer and store meet.

A run's checkpoint goes to `<output>/checkpoints/<run_id>`, its rows into the store. A completed run is never done
again; one that failed, was interrupted or died with its process is begun anew, or goes on from its last saved state.

Under `torchrun` process 0 calls `run` and the others `assist`: they train along, and write and print nothing.
"""

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.errors import DataError, OutputError, RankwiseError, TrainingError
from rankwise.experiments.environment import code_state, versions, with_accelerator
from rankwise.experiments.progress import Reporter, Silent
from rankwise.experiments.records import RunRecord
from rankwise.experiments.schema import RunConfig
from rankwise.experiments.store import Store
from rankwise.experiments.watching import GivenUp, Watching
from rankwise.interrupts import check_interrupt
from rankwise.tasks.base import TaskConfig, TaskData
from rankwise.tasks.holdout import held_out

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from rankwise.adapters.contract import Method
    from rankwise.experiments.run_costs import Trained
    from rankwise.training.callback import RankEvent
    from rankwise.training.fit import FitSettings
    from rankwise.training.tracking import Tracking

CHECKPOINTS = "checkpoints"
WORK = "unfinished"
TRACKING = "tracking"


@dataclass(frozen=True)
class Ran:
    """A run's record, and whether it was found in the store instead of being done now."""

    record: RunRecord
    reused: bool


def run(
    config: RunConfig,
    store: Store,
    output: Path,
    reporter: Reporter | None = None,
    watching: Watching | None = None,
) -> Ran:
    """Do one run, unless the store holds its result already; `watching` is told how it does on the way.

    Raises:
        GivenUp: `watching` gave it up; it is marked as interrupted in the store.
        RankwiseError: whatever is wrong with config, data, model, budget, training or the output folder; the run is
            marked as failed in the store, with the message.
    """
    from rankwise.adapters.distributed import broadcast_object

    check_interrupt()
    reporter = reporter or Silent()
    record = new_record(config)
    found = finished(record, store, output)
    broadcast_object(found is not None)
    if found is not None:
        reporter.end(found, reused=True)
        return Ran(found, reused=True)
    work = output / WORK / record.run_id
    before = store.get(record.run_id)
    if before is not None and before.environment.get("inputs") != record.environment["inputs"]:
        shutil.rmtree(work, ignore_errors=True)  # its saved state belongs to other data
    store.begin(record)
    try:
        with _noted(record.run_id, store):
            done = _train(config, record, store, output, reporter, watching)
            store.finish(done)
    except GivenUp:
        _clear(work)
        raise
    _clear(work)
    reporter.end(done, reused=False)
    return Ran(done, reused=False)


def _clear(work: Path) -> None:
    """Remove the saved states of a run that needs them no more."""
    shutil.rmtree(work, ignore_errors=True)
    with suppress(OSError):  # other runs have theirs beside it
        work.parent.rmdir()


def assist(config: RunConfig, output: Path) -> None:
    """What every process but the first does while that one is in `run`.

    Raises:
        RankwiseError: whatever is wrong with config, data, model, budget or training.
    """
    from rankwise.adapters.distributed import broadcast_object

    if not broadcast_object(False):
        _fit(config, output / WORK / config.run_id)


def finished(wanted: RunRecord, store: Store, output: Path) -> RunRecord | None:
    """The completed run of this id, if the store has it; its checkpoint is copied to `output` if it lies elsewhere.

    Raises:
        DataError: it was made with other data or another model under the same name.
        OutputError: the run is in the store but its checkpoint is gone.
    """
    record = store.get(wanted.run_id)
    if record is None or record.status != "completed" or record.checkpoint is None:
        return None
    _check_inputs(record, wanted, store)
    here = output / CHECKPOINTS / record.run_id
    there = store.path.parent / record.checkpoint
    if not _complete(here):
        if not _complete(there):
            raise OutputError(
                f"run {record.run_id} is completed in {store.path}, but its checkpoint {there} is gone; restore it, or "
                "use another --store to run it again"
            )
        _copy(there, here)
    return replace(record, checkpoint=str(here.relative_to(output)))


def _check_inputs(record: RunRecord, wanted: RunRecord, store: Store) -> None:
    """A run id covers the config; the data and a local model folder behind its names may have changed since."""
    there, here = record.environment.get("inputs"), wanted.environment["inputs"]
    if there != here:
        raise DataError(
            f"run {record.run_id} in {store.path} was made with other inputs under the same names ({there} there, "
            f"{here} now): the data or the model folder has changed; use another --output (and --store)"
        )


def _complete(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def new_record(config: RunConfig) -> RunRecord:
    """The record a run starts with."""
    return RunRecord(
        run_id=config.run_id,
        method=config.method.name,
        task=config.task.name,
        model=config.model.name,
        seed=config.seed,
        budget=getattr(config.method, "budget", None),
        config=config.model_dump(mode="json"),
        environment={
            "machine": with_accelerator(),
            "versions": versions(),
            "code": code_state(),
            "inputs": inputs_of(config),
        },
    )


def inputs_of(config: RunConfig) -> dict[str, str | None]:
    """What the names in a config stand for: a hash of the examples it uses, and of a local model folder's content."""
    from rankwise.training.models import model_fingerprint

    return {"data": data_of(config).fingerprint, "model": model_fingerprint(config.model.name)}


def total_steps(config: RunConfig, train_examples: int) -> int:
    """Optimizer steps of a run: as given, or epochs x ceil(examples / examples per step)."""
    training = config.training
    if training.max_steps is not None:
        return training.max_steps
    if training.epochs is None:  # the schema sets one of the two
        raise TrainingError("neither training.max_steps nor training.epochs is set")
    batches = math.ceil(train_examples / training.batch_size)
    return max(1, math.ceil(training.epochs * math.ceil(batches / training.gradient_accumulation_steps)))


@lru_cache(maxsize=4)
def load_task(config: TaskConfig) -> TaskData:
    """The task's data, kept for the runs that follow."""
    return config.load()


def data_of(config: RunConfig) -> TaskData:
    """The examples that a run trains on and is measured on.

    With `evaluation.holdout` both come from the training examples, and the validation examples are left out.
    """
    share = config.evaluation.holdout
    return load_task(config.task) if share is None else _held_out(config.task, share, config.evaluation.holdout_seed)


@lru_cache(maxsize=4)
def _held_out(task: TaskConfig, share: float, seed: int) -> TaskData:
    return held_out(load_task(task), share, seed)


def _train(
    config: RunConfig, record: RunRecord, store: Store, output: Path, reporter: Reporter, watching: Watching | None
) -> RunRecord:
    def on_event(event: "RankEvent") -> None:
        store.add_ranks(record.run_id, event.step, event.event, event.ranks, event.scores)

    from rankwise.experiments.run_costs import costs_of
    from rankwise.experiments.run_metrics import metrics_of

    trained = _fit(config, output / WORK / record.run_id, reporter, on_event, watching)
    method, fitted = trained.method, trained.fitted
    store.add_steps(record.run_id, [(step, "train_loss", loss) for step, loss in fitted.losses])
    metrics = metrics_of(config, data_of(config), record.run_id, fitted, store)
    costs = costs_of(config, trained, store.scores(record.run_id))
    checkpoint = _export(method, output, record.run_id)
    count = method.parameter_count()
    return replace(
        record,
        status="completed",
        parameters=count.final,
        peak_parameters=count.peak,
        metrics=metrics,
        costs=costs,
        train_seconds=fitted.train_seconds,
        steps=trained.steps,
        rank_pattern=method.rank_pattern(),
        checkpoint=str(checkpoint.relative_to(output))
        if _same(store.path.parent, output)
        else str(checkpoint.resolve()),
    )


def _fit(
    config: RunConfig,
    work_dir: Path,
    reporter: Reporter | None = None,
    on_event: "Callable[[RankEvent], None] | None" = None,
    watching: Watching | None = None,
) -> "Trained":
    """What all processes do together: build, train, predict."""
    from rankwise.costs.memory import watch_memory
    from rankwise.experiments.run_costs import Trained
    from rankwise.training.fit import fit
    from rankwise.training.models import load_base_model

    data = data_of(config)
    steps = total_steps(config, len(data.train))
    name = config.model.name
    base = load_base_model(
        name, num_labels=data.num_labels, kind=data.kind, seed=config.seed, revision=config.model.revision
    )
    method = config.method.build(base.model, total_steps=steps, seed=config.seed)
    reporter = reporter or Silent()
    reporter.begin(f"{config.method.name}, seed {config.seed}", steps)
    max_length = min(config.task.max_length, base.max_tokens or config.task.max_length)
    train, validation = _encoded(data, base.tokenizer, f"{name}@{config.model.revision}", max_length)
    with watch_memory() as memory:
        fitted = fit(
            method,
            base.tokenizer,
            train,
            validation,
            replace(settings(config, steps), tracking=_tracking(config, work_dir.parent.parent)),
            work_dir=work_dir,
            on_step=reporter.step,
            on_event=on_event,
            watch=watching.watch(data.kind) if watching else None,
        )
    key = (data.fingerprint, f"{name}@{config.model.revision}")
    split = next(iter(validation.values()))
    return Trained(method, fitted, steps, data.kind, base.tokenizer, split, key, memory.highest)


def _tracking(config: RunConfig, output: Path) -> "Tracking":
    from rankwise.training.tracking import Tracking

    return Tracking(config.training.report_to, config.run_id, output / TRACKING)


def settings(config: RunConfig, steps: int) -> "FitSettings":
    """What the trainer needs of a config, in final numbers."""
    from rankwise.training.fit import FitSettings

    training = config.training
    return FitSettings(
        total_steps=steps,
        batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup=training.warmup,
        schedule=training.schedule,
        max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=training.gradient_checkpointing,
        precision=training.precision,
        evaluation_batch_size=config.evaluation.batch_size,
        seed=config.seed,
        save_every=training.save_every,
    )


_ENCODED: dict[tuple[str, str, int], tuple["Dataset", "dict[str, Dataset]"]] = {}


def _encoded(
    data: TaskData, tokenizer: "PreTrainedTokenizerBase", model: str, max_length: int
) -> tuple["Dataset", "dict[str, Dataset]"]:
    """Tokenised splits; the last one is kept, because the runs of a comparison share it."""
    from rankwise.training.data import encode

    key = (data.fingerprint, model, max_length)
    if key not in _ENCODED:
        _ENCODED.clear()
        validation = {name: encode(split, tokenizer, max_length) for name, split in data.validation.items()}
        _ENCODED[key] = (encode(data.train, tokenizer, max_length), validation)
    return _ENCODED[key]


def _export(method: "Method", output: Path, run_id: str) -> Path:
    """Write the checkpoint; what an earlier attempt of this very run left behind is replaced."""
    directory = output / CHECKPOINTS / run_id
    if directory.is_dir():
        shutil.rmtree(directory)
    return method.export(directory)


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _copy(source: Path, target: Path) -> None:
    """Copy a checkpoint; a half-written one never stands under its final name."""
    from rankwise.adapters.export import new_directory

    if target.is_dir():
        shutil.rmtree(target)
    with new_directory(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)


@contextmanager
def _noted(run_id: str, store: Store) -> Iterator[None]:
    """Write into the store why a run stopped, then let the error go on."""
    try:
        yield
    except KeyboardInterrupt:
        store.fail(run_id, "interrupted", "interrupted by the user")
        raise
    except GivenUp as reason:
        store.fail(run_id, "interrupted", str(reason))
        raise
    except RankwiseError as error:
        _note_failure(run_id, store, str(error))
        raise
    except OSError as error:
        message = f"run {run_id} could not write its output: {error.strerror or error} ({error.filename or 'no file'})"
        _note_failure(run_id, store, message)
        raise OutputError(message) from error
    except Exception as error:
        if _out_of_memory(error):
            message = f"run {run_id} ran out of memory; lower training.batch_size, or give it a larger machine"
            _note_failure(run_id, store, message)
            raise TrainingError(message) from error
        _note_failure(run_id, store, f"{type(error).__name__}: {error}")
        raise


def _out_of_memory(error: Exception) -> bool:
    """Python's error, that of torch on an accelerator, or what torch says on a CPU."""
    names = ("MemoryError", "OutOfMemoryError")
    return type(error).__name__ in names or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _note_failure(run_id: str, store: Store, message: str) -> None:
    """A store that cannot be written must not hide the first error."""
    try:
        store.fail(run_id, "failed", message)
    except RankwiseError:
        return
