"""Contradictions that only the author's own words show: what a file in the records' dialect says of itself.

Like `checks`, each message ends with its item of the catalogue in `docs/config.md`. All are warnings: such a file
loads.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rankwise.errors import Finding
from rankwise.experiments.dialect import Translation
from rankwise.experiments.dialect_table import METHOD_NAMES, method_section
from rankwise.experiments.model_facts import ModelFacts, model_facts
from rankwise.experiments.settle import number, pick, planned_steps, steps_per_epoch

Found = Iterator[tuple[str, str]]


def check_dialect(
    data: Mapping[str, Any], translation: Translation, before: Translation, text_numbers: Mapping[str, str]
) -> tuple[Finding, ...]:
    """Every contradiction in a file's own words.

    `data` is the file with overrides and `translation` what it means, `before` what the file means without them;
    `text_numbers` are the numbers that plain YAML reads as text (path -> as written).
    """
    facts = model_facts(pick(translation.data, "model.name"))
    found = [
        *_warmups(data, translation, before),
        *_total_budget(data, translation, facts),
        *_adalora_block(data, translation, facts),
        *_short_keys(data, translation),
        *_numbers_as_text(text_numbers),
        *_model_size(data, facts),
        *_metrics(data, translation),
        *_names(data, translation),
        *_protocol(data),
        *_adapter(data, translation),
    ]
    return tuple(Finding(path, message, "warning") for path, message in found)


def _fixed_warmup(translation: Translation) -> tuple[str, int] | None:
    """The author's path and number of steps after which ranks change."""
    steps = number(pick(translation.data, "method.warmup"))
    path = translation.origin.get("method.warmup")
    return (path, int(steps)) if path and steps and steps >= 1 else None


def _warmups(data: Mapping[str, Any], translation: Translation, before: Translation) -> Found:
    """Judged by the length of training that the file's numbers were meant for."""
    fixed = _fixed_warmup(before)
    if fixed is None or translation.method != before.method or translation.overridden(fixed[0]):
        return
    path, steps = fixed
    rate = number(pick(data, "training.lr_warmup_steps"))
    epoch, total = steps_per_epoch(before.data), planned_steps(before.data)
    parts = [f"{steps:,} steps"]
    if epoch and total and pick(before.data, "training.epochs") is not None:
        parts.append(f"{steps / epoch:.0%} of an epoch of {epoch:,}, {steps / total:.0%} of the run of {total:,}")
    if rate and rate != steps:
        parts.append(f"the learning rate's warm-up (training.lr_warmup_steps) is {rate:,.0f}")
    if len(parts) > 1:
        yield path, "; ".join(parts) + ": the warm-ups do not agree [34]"


def _total_budget(data: Mapping[str, Any], translation: Translation, facts: ModelFacts | None) -> Found:
    section = method_section(translation.method)
    total = number(pick(data, f"{section}.total_rank_budget"))
    rank = number(pick(data, f"{section}.init_rank") or pick(data, "model.peft.init_rank"))
    if total is None or facts is None:
        return
    path, matrices = f"{section}.total_rank_budget", facts.matrices
    each = f"{total:.0f} ranks over {matrices} matrices are {total / matrices:.2f} each"
    if total % matrices:
        yield path, f"{each}: no whole rank, so uniform LoRA is not uniform [35]"
    if rank:
        layers, all_of_them = facts.layers * rank, matrices * rank
        readings = f"layers x init_rank = {layers:.0f}, matrices x init_rank = {all_of_them:.0f}"
        if total not in (layers, all_of_them):
            yield path, f"{total:.0f} is none of the readings of the design ({readings}) [35]"
        if total < all_of_them:
            text = (
                f"training starts at init_rank {rank:.0f} x {matrices} = {all_of_them:.0f} ranks, above the budget [35]"
            )
            yield path, text


def _adalora_block(data: Mapping[str, Any], translation: Translation, facts: ModelFacts | None) -> Found:
    block = data.get("adalora")
    if translation.method != "peft_adalora" or not isinstance(block, Mapping):
        return
    wanted = {"tfinal": "final", "deltaT": "every", "total_step": ""}
    absent = [theirs for theirs, ours in wanted.items() if theirs not in block and ours not in block]
    if absent:
        text = f"PEFT's AdaLoRA also needs {', '.join(absent)}; they follow from the run's length and our defaults [38]"
        yield "adalora", text
    total = number(block.get("total_rank_budget"))
    if total and facts and total % facts.matrices:
        each = f"{total:.0f} / {facts.matrices} = {total / facts.matrices:.2f}"
        yield "adalora.total_rank_budget", f"PEFT's target_r is a whole rank per matrix; {each} is none [38]"


def _short_keys(data: Mapping[str, Any], translation: Translation) -> Found:
    space = pick(data, "optuna.search_space")
    for leaf in space if isinstance(space, Mapping) else ():
        ours = next((t for t, u in translation.origin.items() if u == f"optuna.search_space.{leaf}"), None)
        if ours is not None and "." not in str(leaf):
            full = translation.user_path(ours.removeprefix("sweep.search_space."))
            yield (
                f"optuna.search_space.{leaf}",
                f"read as {full}: as an override the short key would name no field [40]",
            )
    for leaf, spread in space.items() if isinstance(space, Mapping) else ():
        kind = spread.get("type") if isinstance(spread, Mapping) else None
        if kind in ("loguniform", "uniform", "logint"):
            ours_word = (
                "float with log: true"
                if kind == "loguniform"
                else "float"
                if kind == "uniform"
                else "int with log: true"
            )
            yield f"optuna.search_space.{leaf}.type", f"'{kind}' is not a word of Optuna; read as {ours_word} [50]"


def _numbers_as_text(text_numbers: Mapping[str, str]) -> Found:
    for path, written in text_numbers.items():
        value = float(written.strip('"').replace("_", ""))
        yield (
            path,
            f"{written} is text to plain YAML readers; read as the number {value:g} [41]",
        )


_SUFFIX = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}


def _count(value: object) -> float | None:
    """`86M` as a number."""
    match = re.fullmatch(r"\s*([\d_.]+)\s*([kmb]?)\s*", str(value).lower())
    amount = number(match[1].replace("_", "")) if match else None
    return amount * _SUFFIX[match[2]] if match and amount else None


def _model_size(data: Mapping[str, Any], facts: ModelFacts | None) -> Found:
    said = pick(data, "model.num_parameters")
    count = _count(said)
    if said is not None and count is None:
        yield "model.num_parameters", f"{said!r} is not a number of parameters [42]"
    elif isinstance(said, str) and not said.replace("_", "").isdigit():
        yield "model.num_parameters", f"'{said}' is text; read as {count:,.0f} [42]"
    if facts is None:
        return
    if count and abs(count / facts.parameters - 1) > 0.02:
        backbone = " (what it has without its embeddings)" if abs(count / facts.backbone - 1) < 0.02 else ""
        yield "model.num_parameters", f"{said} is wrong{backbone}: the model has {facts.parameters / 1e6:.1f}M [42]"
    for key, true in (("hidden_size", facts.hidden_size), ("num_layers", facts.layers)):
        value = pick(data, f"model.{key}")
        if value is not None and number(value) != true:
            yield f"model.{key}", f"{value} is wrong: the model has {true} [42]"


def _metrics(data: Mapping[str, Any], translation: Translation) -> Found:
    wanted, measured = pick(data, "optuna.metric"), pick(data, "evaluation.metrics")
    if wanted is not None and isinstance(measured, list) and wanted not in measured:
        yield "optuna.metric", f"'{wanted}' is not among evaluation.metrics ({', '.join(map(str, measured))}) [43]"
    if wanted is not None and "mnli" in str(pick(data, "dataset.name") or data.get("dataset")).lower():
        yield "optuna.metric", f"'{wanted}' does not say which of MNLI's validation sets; read as the matched one [43]"


def _names(data: Mapping[str, Any], translation: Translation) -> Found:
    role, name, run_id = data.get("method"), data.get("method_name"), data.get("run_id")
    if role is not None and name is not None and str(role).lower() not in METHOD_NAMES:
        yield "method", f"'{role}' is a role in the record, not a method; method_name ({name}) decides [44]"
    if isinstance(run_id, str) and "--" in run_id:
        yield "run_id", f"'{run_id}' has an empty part (`--`) where a bracket was cut out of a name [44]"
    if isinstance(model := data.get("model"), Mapping) and "backbone" in model:
        yield (
            "model.backbone",
            "what a run's id calls a model is another name than the one that loads it; read as model.name [44]",
        )


def _protocol(data: Mapping[str, Any]) -> Found:
    if "seed" not in data:
        yield "seed", "no seed is given; 0 is taken [45]"
    if "optuna" in data:
        text = "trials are chosen on the examples that the result is reported on; tune on a split of train instead [45]"
        yield "optuna.metric", text
    device = pick(data, "hardware.gpu_type")
    if device is not None:
        yield "hardware.gpu_type", f"{device}: nothing enforces it, and times compare on one device only [48]"


def _adapter(data: Mapping[str, Any], translation: Translation) -> Found:
    peft = pick(data, "model.peft")
    if not isinstance(peft, Mapping) or translation.method == "full":
        return
    kind = str(peft.get("type", "")).lower()
    own = {"glora": "glora", "peft_adalora": "adalora", "lora": "lora"}.get(translation.method, translation.method)
    if kind and kind != own:
        yield "model.peft.type", f"'{kind}' does not select {data.get('method_name')}: method_name decides [51]"
    absent = [key for key in ("target_modules", "alpha", "dropout") if key not in peft]
    if absent:
        text = (
            f"{', '.join(absent)} not given; every linear layer of the blocks, scaling 2 and no dropout are taken [51]"
        )
        yield "model.peft", text
    section = method_section(translation.method)
    if section in data and section != translation.method:
        yield section, f"each method has a section of its own name and keys; read as method {translation.method} [51]"
