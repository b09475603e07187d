"""One table: every key of the records' dialect and what it is in our schema."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`source` is the dialect's dotted key, `target` ours (None: it describes the run and is not passed on)."""

    source: str
    target: str | None
    meaning: str


_MODEL_FACT = "describes the base model; compared with what is known of it"
_DEVICE = "describes the machine; a run uses what it finds and records it"

ROWS = (
    Row("run_id", None, "kept as a label; a run's own id is computed from its values"),
    Row("method", None, "the run's role in the record; a method's name here counts only without `method_name`"),
    Row(
        "method_name", "method.name", "GLoRA is `glora`, AdaLoRA is `peft_adalora`, LoRA is `lora`, or one of our names"
    ),
    Row("seed", "seed", "as it is"),
    Row(
        "model",
        "model.name",
        "a plain word is short for `model.backbone`; an override keeps `model.peft`",
    ),
    Row("model.backbone", "model.name", "as it is"),
    Row("model.name", "model.name", "as it is"),
    Row("model.hidden_size", None, _MODEL_FACT),
    Row("model.num_layers", None, _MODEL_FACT),
    Row("model.num_parameters", None, _MODEL_FACT + "; `86M` is read as 86,000,000"),
    Row("model.peft.type", None, "compared with `method_name`, which alone decides"),
    Row(
        "model.peft.init_rank",
        "method.budget",
        "LoRA: the budget `r=<init_rank>`; AdaLoRA: see `adalora.init_rank`; GLoRA: not used, its warm-up is "
        "at the budget itself",
    ),
    Row("model.peft.alpha", "method.scaling", "divided by `init_rank`"),
    Row("model.peft.dropout", "method.dropout", "as it is"),
    Row("model.peft.target_modules", "method.target_modules", "as it is"),
    Row("dataset", "task.name", "a plain word is short for `dataset.name`"),
    Row("dataset.name", "task.name", "`glue_mnli` is `glue/mnli`"),
    Row("dataset.max_length", "task.max_length", "as it is"),
    Row("dataset.batch_size", "training.batch_size", "as it is"),
    Row(
        "training.epochs", "training.epochs", "as it is; `training.max_steps` takes its place when given as an override"
    ),
    Row("training.learning_rate", "training.learning_rate", "as it is; `2e-4` is a number"),
    Row("training.weight_decay", "training.weight_decay", "as it is"),
    Row("training.max_grad_norm", "training.max_grad_norm", "as it is"),
    Row("training.gradient_checkpointing", "training.gradient_checkpointing", "as it is"),
    Row("training.optimizer", None, "must be `adamw`, the one optimizer there is"),
    Row("training.lr_scheduler", "training.schedule", "as it is"),
    Row("training.lr_warmup_steps", "training.warmup", "as it is"),
    Row("training.warmup_steps", "training.warmup", "as it is"),
    Row("glo_ra.total_rank_budget", "method.budget", "`128` is `128 ranks`"),
    Row("glo_ra.beta_ema", "method.beta", "as it is"),
    Row("glo_ra.warmup_steps", "method.warmup", "as it is"),
    Row("adalora.total_rank_budget", "method.budget", "`128` is `128 ranks`"),
    Row(
        "adalora.init_rank",
        "method.initial_ratio",
        "init_rank x matrices / total_rank_budget, where the number of matrices is known",
    ),
    Row("adalora.beta1", "method.beta1", "as it is"),
    Row("adalora.beta2", "method.beta2", "as it is"),
    Row("adalora.orth_reg_weight", "method.orthogonality", "as it is"),
    Row("adalora.adaptation_start_step", "method.warmup", "as it is"),
    Row("evaluation.metrics", "evaluation.metrics", "`matthews_corrcoef` is `matthews_correlation`"),
    Row("evaluation.track_training_time", None, "always measured"),
    Row("hardware.gpu_type", None, _DEVICE),
    Row("hardware.num_gpus", None, _DEVICE),
    Row("optuna.n_trials", "sweep.n_trials", "as it is"),
    Row("optuna.direction", "sweep.direction", "as it is"),
    Row("optuna.metric", "sweep.metric", "`validation_accuracy` is `accuracy`"),
    Row(
        "optuna.search_space",
        "sweep.search_space",
        "short keys mean the one field they can; `loguniform` is `float` with `log: true`, `uniform` is `float`",
    ),
)
BY_SOURCE = {row.source: row for row in ROWS}

HOMES = {
    "model": "model",
    "dataset": "task",
    "training": "training",
    "evaluation": "evaluation",
    "optuna": "sweep",
}
"""Sections and where their other keys belong: our own names are allowed in them too (`training.max_steps`)."""

METHOD_NAMES = {"glora": "glora", "adalora": "peft_adalora", "lora": "lora"}
METHOD_SECTIONS = {"glora": "glo_ra", "peft_adalora": "adalora"}
"""The section with a method's own settings; for other methods it is called like the method."""

ONLY_HERE = frozenset({"run_id", "method_name", "dataset", "optuna", "hardware", *METHOD_SECTIONS.values()})
"""Keys that tell a file in this dialect."""


def method_section(method: str) -> str:
    """What the dialect calls the section with a method's settings."""
    return METHOD_SECTIONS.get(method, method)


def keys_of(section: str) -> tuple[str, ...]:
    """The dialect's own keys of a section (`` for the top)."""
    prefix = f"{section}." if section else ""
    names = (row.source.removeprefix(prefix).partition(".")[0] for row in ROWS if row.source.startswith(prefix))
    return tuple(dict.fromkeys(names))
