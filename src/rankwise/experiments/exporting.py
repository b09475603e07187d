"""One checkpoint into one folder: the steps of `rankwise export`, without its options and its printing."""

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.adapters.checkpoint import CONFIG, WEIGHTS, read_checkpoint, read_config, read_frame, why_not_plain
from rankwise.adapters.contract import Form
from rankwise.adapters.export import Frame, new_directory, padded, write_lora
from rankwise.adapters.merge import merge_into, refuse_tied, save_model
from rankwise.adapters.peft_types import CONFIGS
from rankwise.errors import ConfigError, DataError, Finding
from rankwise.experiments.adapter_base import base_matrices, check_same_base, labels_of, load_base, tokenizer_of
from rankwise.experiments.adapter_conditional import average_pairs, read_conditional
from rankwise.experiments.adapter_source import Source
from rankwise.experiments.card import CardFacts, Deciding, is_path, model_card

KINDS = {"LORA": "LoRA", "ADALORA": "AdaLoRA"}


@dataclass(frozen=True)
class Exporting:
    """What is asked for: form, folder, another name for the base model, and the hub's name if it goes there."""

    form: Form
    output: Path
    model: str | None = None
    push: str | None = None


@dataclass(frozen=True)
class Exported:
    """What was written: `what` in words, notes on what could not be known, and the same as data."""

    what: str
    data: dict[str, Any]
    notes: tuple[str, ...] = ()


def export_source(source: Source, asked: Exporting) -> Exported:
    """Write `source` as asked, with a model card.

    Raises:
        ConfigError, ModelError, DataError, OutputError: see `adapter_commands.export`.
    """
    if not source.is_adapter and (source.folder / "config.json").is_file():
        return _whole(source, asked)
    if source.conditional is not None:
        return _conditional(source, asked)
    if asked.form == "merged":
        return _merged(source, asked)
    return _lora(source, asked)


def _lora(source: Source, asked: Exporting) -> Exported:
    if odd := why_not_plain(read_config(source.folder)):
        way = "; with --form merged PEFT merges it" if _mergeable(read_config(source.folder)) else ""
        message = f"'{asked.form}' is plain LoRA, but in {source.folder} {odd}{way}"
        raise ConfigError("export", [Finding("--form", message)])
    checkpoint = read_checkpoint(source.folder)
    form: Form = "compact" if asked.form == "static" else asked.form  # the same for what decides nothing per input
    frame = _renamed(checkpoint.frame, asked)
    _check_base_name(frame, asked)
    matrices, unknown = base_matrices(frame) if form == "uniform" else ({}, None)
    card = CardFacts(
        form=form,
        kind=KINDS[checkpoint.kind.upper()],
        base=frame.base_model,
        task_type=frame.task_type,
        labels=labels_of(frame),
        ranks=_ranks(source, checkpoint.ranks),
        parameters=checkpoint.parameters,
        record=source.record,
        where=asked.push or CardFacts.where,
    )
    write_lora(
        frame,
        checkpoint.pairs,
        asked.output,
        form,
        matrices=matrices,
        files={"README.md": model_card(card)},
    )
    wide = padded(checkpoint.pairs, matrices) if form == "uniform" else checkpoint.pairs
    held = sum(pair.rank * pair.cost for pair in wide.values())
    live = sum(pair.rank > 0 for pair in wide.values())
    notes = []
    if unknown:
        notes.append(
            f"the base model is not at hand ({unknown}), so layers that the checkpoint does not name got no zeros; "
            "servers that stack layers may need them. Name it with --model"
        )
    what = f"{asked.form} LoRA, {live} modules, {held:,} adapter parameters"
    data = {"output": str(asked.output), "form": asked.form, "modules": live, "parameters": held}
    return Exported(what, data | {"base_model": frame.base_model}, tuple(notes))


def _conditional(source: Source, asked: Exporting) -> Exported:
    """A type of our own: copied, or averaged into plain LoRA."""
    checkpoint = read_conditional(source)
    checkpoint = replace(checkpoint, frame=_renamed(checkpoint.frame, asked))
    if asked.form not in ("compact", "static"):
        message = (
            f"'{asked.form}' is not possible: {checkpoint.kind} adapters decide per input, which neither weights that "
            "all inputs share nor the usual servers can say. Write --form static first (plain LoRA with "
            f"{_STATIC[checkpoint.decides_on == 'blocks']}) and export that as '{asked.form}'"
        )
        raise ConfigError("export", [Finding("--form", message)])
    static = asked.form == "static"
    pairs = average_pairs(checkpoint) if static else {}
    frame = checkpoint.frame
    _check_base_name(frame, asked)
    parameters = sum(pair.rank * pair.cost for pair in pairs.values()) if static else checkpoint.parameters
    deciding = Deciding(
        checkpoint.kind, checkpoint.decides_on, checkpoint.usage, checkpoint.threshold, checkpoint.beside
    )
    card = CardFacts(
        form=asked.form,
        kind=checkpoint.kind,
        base=frame.base_model,
        task_type=frame.task_type,
        labels=labels_of(frame),
        ranks=_ranks(source, checkpoint.ranks),
        parameters=parameters,
        record=source.record,
        where=asked.push or CardFacts.where,
        deciding=deciding,
    )
    if static:
        write_lora(frame, pairs, asked.output, files={"README.md": model_card(card)})
    else:
        _copy_adapter(source.folder, frame, asked.output, model_card(card))
    what = (
        f"{'static LoRA' if static else checkpoint.kind}, {len(checkpoint.modules)} modules, {parameters:,} parameters"
    )
    data = {"output": str(asked.output), "form": asked.form, "modules": len(checkpoint.modules)}
    note = f"{_STATIC[checkpoint.decides_on == 'blocks']}, so this is another model than the one that was measured"
    return Exported(what, data | {"parameters": parameters, "base_model": frame.base_model}, (note,) if static else ())


_STATIC = {False: "decisions at their averages", True: "every block kept by every input"}
"""What a static export makes of decisions, by whether they are about blocks."""


def _copy_adapter(source: Path, frame: Frame, output: Path, card: str) -> None:
    """The adapter's config and weights as they stand, but for the base model's name."""
    named = {"base_model_name_or_path": frame.base_model, "revision": frame.revision}
    with new_directory(output) as folder:
        text = json.dumps(read_config(source) | named, indent=2, sort_keys=True)
        (folder / CONFIG).write_text(text, encoding="utf-8")
        shutil.copyfile(source / WEIGHTS, folder / WEIGHTS)
        (folder / "README.md").write_text(card, encoding="utf-8")


def _check_base_name(frame: Frame, asked: Exporting) -> None:
    if asked.push and (not frame.base_model or is_path(frame.base_model)):
        message = "on the hub the base model needs a name there, not a folder of this machine; name it with --model"
        raise ConfigError("export", [Finding("--push", message)])


def _merged(source: Source, asked: Exporting) -> Exported:
    """Plain LoRA and AdaLoRA are merged here; any other PEFT type by PEFT, if it can."""
    config = read_config(source.folder)
    if "peft_type" not in config:
        raise DataError(f"{source.folder / CONFIG} names no peft_type, so nothing says what its tensors are")
    if not _mergeable(config):
        odd = why_not_plain(config)
        raise ConfigError("export", [Finding("form", f"'merged' is not possible: in {source.folder} {odd}")])
    if source.record is not None and asked.model is None:
        check_same_base(source.record)
    kind = str(config.get("peft_type"))
    if why_not_plain(config) is None:
        checkpoint = read_checkpoint(source.folder)
        frame, ranks, parameters = checkpoint.frame, checkpoint.ranks, checkpoint.parameters
        base = load_base(frame, asked.model)
        merge_into(base.model, checkpoint.pairs)
        model = base.model
    else:
        frame, ranks, parameters = read_frame(source.folder), {}, 0
        base = load_base(frame, asked.model)
        model = _merged_by_peft(base.model, source.folder)
    card = CardFacts(
        form="merged",
        kind=KINDS.get(kind, kind),
        base=asked.model or frame.base_model,
        task_type=frame.task_type,
        labels=None,
        ranks=_ranks(source, ranks),
        parameters=parameters,
        record=source.record,
        where=asked.push or CardFacts.where,
    )
    with new_directory(asked.output) as folder:
        save_model(model, folder, base.tokenizer)
        (folder / "README.md").write_text(model_card(card), encoding="utf-8")
    total = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    data = {"output": str(asked.output), "form": "merged", "parameters": total, "base_model": card.base}
    notes = () if base.tokenizer is not None else ("the base model has no tokenizer, so none was written",)
    return Exported(f"merged {type(model).__name__}, {total:,} {dtype} parameters", data | {"dtype": dtype}, notes)


def _mergeable(config: Mapping[str, Any]) -> bool:
    """Whether PEFT could merge it: its type works on matrices, and touches nothing else."""
    kind = CONFIGS.get(str(config.get("peft_type")).upper())
    return kind is not None and "target_modules" in kind.__dataclass_fields__ and config.get("bias", "none") == "none"


def _merged_by_peft(base: nn.Module, folder: Path) -> nn.Module:
    """DoRA and its like.

    Raises:
        ConfigError: PEFT has no way to merge it.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own ways with other libraries; what is wrong, it raises
        model = PeftModel.from_pretrained(base, str(folder))
    inner = getattr(model.base_model, "model", base)
    refuse_tied(inner, [name for name, module in inner.named_modules() if isinstance(module, BaseTunerLayer)])
    try:
        merged: nn.Module = model.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, ValueError, TypeError) as error:
        message = f"PEFT cannot merge this adapter ({str(error).splitlines()[0]})"
        raise ConfigError("export", [Finding("form", message)]) from error
    return merged


def _whole(source: Source, asked: Exporting) -> Exported:
    """Full fine-tuning: the folder is what it is, and gets a card and its tokenizer."""
    if asked.form != "merged":
        message = f"{source.folder} holds a whole model, no adapter to write as '{asked.form}'; its form is 'merged'"
        raise ConfigError("export", [Finding("form", message)])
    record = source.record
    name = asked.model or (record.model if record else None)
    tokenizer = tokenizer_of(name) if name else None
    parameters = record.parameters if record else 0
    card = CardFacts("merged", "full", name, "SEQ_CLS" if record else None, None, {}, 0, record)
    with new_directory(asked.output) as folder:
        shutil.copytree(source.folder, folder, dirs_exist_ok=True)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
        (folder / "README.md").write_text(model_card(replace(card, where=asked.push or card.where)), encoding="utf-8")
    data = {"output": str(asked.output), "form": "merged", "parameters": parameters, "base_model": name}
    return Exported(f"fully fine-tuned model{f', {parameters:,} parameters' if parameters else ''}", data)


def _renamed(frame: Frame, asked: Exporting) -> Frame:
    return frame if asked.model is None else replace(frame, base_model=asked.model, revision=None)


def _ranks(source: Source, ranks: dict[str, int]) -> dict[str, int]:
    """With the modules that the run left without an adapter, which the checkpoint does not name."""
    return {**source.record.rank_pattern, **ranks} if source.record else ranks
