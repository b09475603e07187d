"""One checkpoint into one folder: the steps of `rankwise export`, without its options and its printing."""

import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.adapters.checkpoint import read_checkpoint, read_config, read_frame, why_not_plain
from rankwise.adapters.contract import Form
from rankwise.adapters.export import Frame, new_directory, padded, write_lora
from rankwise.adapters.merge import merge_into, refuse_tied, save_model
from rankwise.errors import ConfigError, Finding
from rankwise.experiments.adapter_base import base_matrices, labels_of, load_base, tokenizer_of
from rankwise.experiments.adapter_source import Source
from rankwise.experiments.card import CardFacts, is_path, model_card

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
    if asked.form == "merged":
        return _merged(source, asked)
    return _lora(source, asked)


def _lora(source: Source, asked: Exporting) -> Exported:
    if odd := why_not_plain(read_config(source.folder)):
        message = f"'{asked.form}' is plain LoRA, but in {source.folder} {odd}; with --form merged PEFT merges it"
        raise ConfigError("export", [Finding("--form", message)])
    checkpoint = read_checkpoint(source.folder)
    frame = _renamed(checkpoint.frame, asked)
    if asked.push and (not frame.base_model or is_path(frame.base_model)):
        message = "on the hub the base model needs a name there, not a folder of this machine; name it with --model"
        raise ConfigError("export", [Finding("--push", message)])
    matrices, unknown = base_matrices(frame) if asked.form == "uniform" else ({}, None)
    card = CardFacts(
        form=asked.form,
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
        asked.form,
        matrices=matrices,
        files={"README.md": model_card(card)},
    )
    wide = padded(checkpoint.pairs, matrices) if asked.form == "uniform" else checkpoint.pairs
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


def _merged(source: Source, asked: Exporting) -> Exported:
    """Plain LoRA and AdaLoRA are merged here; any other PEFT type by PEFT, if it can."""
    config = read_config(source.folder)
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
