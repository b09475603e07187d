"""The base model behind an adapter checkpoint: its layers without its weights, or all of it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from rankwise.adapters.attach import Matrix
from rankwise.adapters.export import Frame, linear_matrices
from rankwise.adapters.merge import add_tensors
from rankwise.errors import MissingPackageError, ModelError
from rankwise.experiments.records import RunRecord
from rankwise.hub import hub_reachable
from rankwise.training.models import EMBEDDED, EMBEDDED_ORIGIN, model_fingerprint, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""PEFT's task types and the Transformers class that loads their base model."""
SENTINEL = 977
"""A number of labels that no other size in a model is: where it turns up, a tensor counts labels."""
_LONGEST = 300
FAILURES = (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError, AttributeError)
"""What libraries raise when they load what is damaged."""


@dataclass(frozen=True)
class Base:
    """A loaded base model; its tokenizer where the model's folder has one."""

    model: nn.Module
    tokenizer: "PreTrainedTokenizerBase | None"


def base_name(frame: Frame, override: str | None = None) -> str:
    """The base model's name: as asked for, else as the checkpoint has it.

    Raises:
        ModelError: neither says one.
    """
    name = override or frame.base_model
    if not name:
        raise ModelError("the checkpoint names no base model; name it with --model (a Hugging Face id or a folder)")
    return name


def check_same_base(record: RunRecord) -> None:
    """The base model behind a run's name must be the one that it was trained on.

    Raises:
        ModelError: it has changed since.
    """
    inputs = record.environment.get("inputs")
    known = inputs.get("model") if isinstance(inputs, dict) else None
    if known is not None and model_fingerprint(record.model) != known:
        raise ModelError(
            f"the base model '{record.model}' is not the one that run {record.run_id} was trained on; restore it, or "
            "name another place with --model"
        )


def base_matrices(
    frame: Frame, override: str | None = None, *, download: bool = True
) -> tuple[dict[str, Matrix], str | None]:
    """Every linear layer of the base model, built from its config alone (no weights); with why there are none, if so.

    Args:
        frame: of the checkpoint.
        override: another name for the base model.
        download: whether the hub may be asked; else only folders and the local cache.
    """
    try:
        source, options = _where(base_name(frame, override), frame, override, download)
        config = transformers.AutoConfig.from_pretrained(source, **options)
        return linear_matrices(_hollow(frame, config)), None
    except (*FAILURES, ModelError) as error:
        return {}, reason(error)


def load_base(frame: Frame, override: str | None = None) -> Base:
    """The base model in the dtype of its weights, with the checkpoint's head in place.

    Raises:
        ModelError: it cannot be had, or some of its weights are neither in it nor in the checkpoint.
        ConfigError: the checkpoint's head does not fit.
    """
    name = base_name(frame, override)
    _be_quiet()
    source, options = _where(name, frame, override, download=True)
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
        labels = _labels(frame, config)
        sized = {} if labels is None else {"num_labels": labels}
        model, info = _model_class(frame).from_pretrained(
            source, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True, **sized, **options
        )
    except FAILURES as error:
        hint = "name it with --model (a Hugging Face id or a folder)"
        raise ModelError(f"cannot load the base model '{name}': {reason(error)}; {hint}") from error
    add_tensors(model, frame.extra)
    absent = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    if untrained := sorted(set(absent) - set(frame.extra)):
        raise ModelError(f"{untrained[0]} of {type(model).__name__} is neither in '{name}' nor in the checkpoint")
    tokenizer = _tokenizer(source, options)
    if tokenizer is not None and model.config.pad_token_id is None:  # as in training: decoders classify the last token
        model.config.pad_token_id = tokenizer.pad_token_id
    return Base(model, tokenizer)


def labels_of(frame: Frame) -> int | None:
    """Number of labels of the checkpoint's head, if it has one and its base model's config is at hand."""
    try:
        source, options = _where(base_name(frame), frame, None, download=False)
        return _labels(frame, transformers.AutoConfig.from_pretrained(source, **options))
    except (*FAILURES, ModelError):
        return None


def tokenizer_of(name: str) -> "PreTrainedTokenizerBase | None":
    """The tokenizer of a base model, if it can be had."""
    try:
        return _tokenizer(*_where(name, Frame(), None, download=True))
    except ModelError:
        return None


def _where(name: str, frame: Frame, override: str | None, download: bool) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes: a folder or a name, and its options."""
    source = resolve_model(name)
    if name == EMBEDDED_ORIGIN:
        try:
            source = resolve_model(EMBEDDED)
        except MissingPackageError:
            source = name
    local = Path(source).is_dir()
    revision = None if local or override else frame.revision
    return source, {"revision": revision, "local_files_only": local or not download or not hub_reachable()}


def _model_class(frame: Frame) -> Any:  # noqa: ANN401 - Transformers' auto classes share no useful type
    if frame.task_type is not None:
        if frame.task_type not in AUTO_CLASSES:
            raise ModelError(f"task type {frame.task_type} is unknown; known are {', '.join(AUTO_CLASSES)}")
        return getattr(transformers, AUTO_CLASSES[frame.task_type])
    known = frame.model_class[0] if frame.model_class else ""
    found = getattr(transformers, known, None)
    if found is None or not hasattr(found, "from_pretrained"):
        raise ModelError(
            "the checkpoint says neither a task type nor a class of Transformers"
            + (f" ('{known}' is none)" if known else "")
            + ", so its base model cannot be built; set task_type in its adapter_config.json"
        )
    return found


def _hollow(frame: Frame, config: Any) -> nn.Module:  # noqa: ANN401 - any Transformers config
    """The base model on the meta device: shapes without weights."""
    _be_quiet()
    kind = _model_class(frame)
    with torch.device("meta"):
        model: nn.Module = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    return model


def _labels(frame: Frame, config: Any) -> int | None:  # noqa: ANN401 - any Transformers config
    """Number of labels of the trained head, read off its shape; None if there is none that counts labels."""
    if frame.task_type not in ("SEQ_CLS", "TOKEN_CLS"):
        return None
    sized = type(config).from_dict(config.to_dict() | {"num_labels": SENTINEL, "id2label": None, "label2id": None})
    return read_labels({key: tuple(t.shape) for key, t in _hollow(frame, sized).state_dict().items()}, frame.extra)


def read_labels(shapes: Mapping[str, tuple[int, ...]], head: Mapping[str, torch.Tensor]) -> int | None:
    """The size in `head` that is `SENTINEL` in `shapes`."""
    for key, shape in shapes.items():
        if SENTINEL in shape and key in head:
            return int(head[key].shape[shape.index(SENTINEL)])
    return None


def _tokenizer(source: str, options: Mapping[str, Any]) -> "PreTrainedTokenizerBase | None":
    try:
        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(source, **options)
    except FAILURES:
        return None
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        return None  # a folder without a tokenizer: Transformers makes one up that knows no words
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _be_quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def reason(error: Exception) -> str:
    """What an error says, on one line: its first, and the next too where that is only a heading."""
    if not isinstance(error, ModelError) and not hub_reachable() and isinstance(error, OSError):
        why = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else "the Hugging Face hub cannot be reached"
        return f"{why}, and it is not in the local cache"
    first, *more = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join([first, *more[:1]] if first.endswith(":") else [first])[:_LONGEST]
