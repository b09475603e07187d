"""The model card of an exported checkpoint: what the store knows about its run, and nothing that nobody measured.

No path of this machine gets into it: local folders are named by their last part.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from rankwise.adapters.contract import Form
from rankwise.experiments.module_grid import place_of
from rankwise.experiments.records import RunRecord

PIPELINES = {
    "SEQ_CLS": "text-classification",
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}
HEADS = {
    "SEQ_CLS": "ForSequenceClassification",
    "CAUSAL_LM": "ForCausalLM",
    "SEQ_2_SEQ_LM": "ForSeq2SeqLM",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
FORMS = {
    "compact": "plain LoRA, scaling folded into lora_B, each module at its own rank",
    "uniform": "plain LoRA, scaling folded into lora_B, zero-padded to one rank for servers",
    "merged": "the whole model with the adapter added to its weights",
    "static": "plain LoRA with every per-input decision at its average, scaling folded into lora_B",
}


@dataclass(frozen=True)
class Deciding:
    """What a card says of an adapter that decides per input.

    Args:
        kind: its PEFT type.
        what: `modules` or `blocks`.
        usage: module or block -> share of training examples that open it; empty if it was not measured.
        threshold: probability above which something is open.
        beside: parameters of routers and the like; part of the adapter's.
    """

    kind: str
    what: str
    usage: Mapping[str, float]
    threshold: float
    beside: int


@dataclass(frozen=True)
class CardFacts:
    """What a card is written from.

    Args:
        form: of the export.
        kind: `LoRA`, `AdaLoRA`, `full` …: what the checkpoint was.
        base: the base model's name as the checkpoint has it.
        task_type: PEFT's task type.
        labels: how many the head has, if it counts labels.
        ranks: live rank per module, by full name; empty without an adapter.
        parameters: adapter parameters, 0 without an adapter.
        record: the run, if it is known.
        truncated: what a truncation before this export did, in one sentence.
        where: what `from_pretrained` takes: the name on the hub, or a placeholder.
        deciding: what decides per input, if something does.
        taught: what a distillation did after decisions were averaged, in one sentence without its full stop.
    """

    form: Form
    kind: str
    base: str | None
    task_type: str | None
    labels: int | None
    ranks: Mapping[str, int]
    parameters: int
    record: RunRecord | None = None
    truncated: str | None = None
    where: str = "path/to/this/folder"
    deciding: Deciding | None = None
    taught: str | None = None

    @property
    def averaged(self) -> bool:
        """Whether decisions per input were replaced by averages."""
        return self.form == "static" and self.deciding is not None


def model_card(facts: CardFacts) -> str:
    """The text of README.md, with the YAML block that the hub reads."""
    parts = [f"---\n{yaml.safe_dump(front_matter(facts), sort_keys=False)}---\n", f"# {_title(facts)}\n"]
    parts.append(_origin(facts))
    if facts.record is not None:
        parts += ["## Results\n", _results(facts.record, facts)]
    if facts.ranks:
        parts += ["## Ranks\n", _ranks(facts.ranks)]
    if facts.deciding is not None:
        parts += ["## Decisions\n", _decisions(facts.deciding, facts)]
    parts += ["## Use\n", _usage(facts)]
    if facts.record is not None and (versions := facts.record.environment.get("versions")):
        parts += ["## Versions\n", _versions(versions)]
    return "\n".join(part for part in parts if part)


def front_matter(facts: CardFacts) -> dict[str, Any]:
    """What the hub reads: base model, library, pipeline, tags."""
    merged = facts.form == "merged"
    base = _hub_id(facts.base)
    found: dict[str, Any] = {"base_model": base} if base else {}
    if base:
        found["base_model_relation"] = "finetune" if merged else "adapter"
    found["library_name"] = "transformers" if merged else "peft"
    if facts.task_type in PIPELINES:
        found["pipeline_tag"] = PIPELINES[facts.task_type]
    tags = ["rankwise"] if facts.record is not None else []
    tags += [] if facts.kind == "full" else ["lora"]
    tags += [facts.record.method] if facts.record is not None and facts.record.method not in ("lora", "full") else []
    found["tags"] = [*tags, *([] if merged else ["adapter"])]
    return found


def short_name(name: str | None) -> str:
    """A model's or task's name without any folder of this machine."""
    if not name:
        return "unknown"
    if _hub_id(name) or not is_path(name):
        return name
    return f"{Path(name).name} (a local folder)"


def _title(facts: CardFacts) -> str:
    record = facts.record
    model, task = short_name(record.model if record else facts.base), f" on {short_name(record.task)}" if record else ""
    if facts.kind == "full":
        return f"{model}, fine-tuned{task}"
    adapter = f"{record.method if record else facts.kind} adapter"
    return f"{model} with a merged {adapter}{task}" if facts.form == "merged" else f"{adapter} for {model}{task}"


def _origin(facts: CardFacts) -> str:
    record = facts.record
    rows: list[tuple[str, str]] = []
    if record is not None:
        rows += [("method", record.method), ("task", short_name(record.task)), ("model", short_name(record.model))]
        rows += [("budget", record.budget)] if record.budget else []
        rows += [("seed", str(record.seed)), ("optimizer steps", f"{record.steps:,}")]
        rows += [("parameters trained at most", f"{record.peak_parameters:,}")]
    else:
        rows += [("checkpoint", facts.kind), ("base model", short_name(facts.base))]
    if facts.parameters:
        rows.append(("adapter parameters", f"{facts.parameters:,}"))
    rows.append(("form", _form(facts)))
    note = "" if record is not None else "\nHow it was trained is not recorded in the checkpoint.\n"
    note += f"\n{facts.truncated}\n" if facts.truncated else ""
    return _table(("", ""), rows) + note


def _form(facts: CardFacts) -> str:
    if facts.kind == "full":
        return "a Transformers model"
    if facts.deciding is not None and not facts.averaged:
        return f"{facts.form}: PEFT type {facts.deciding.kind} of the package rankwise, which decides per input"
    return f"{facts.form}: {FORMS[facts.form]}"


def _results(record: RunRecord, facts: CardFacts) -> str:
    before = "Measured before the truncation.\n\n" if facts.truncated is not None else ""
    if facts.averaged:
        before = "Measured while every input decided for itself, before decisions were averaged.\n\n"
    rows = [(name, _number(m.value), _number(m.se), f"{m.n:,}") for name, m in record.metrics.items()]
    note = "\nMetrics of one run on its evaluation split; the standard error is over its n examples, not over seeds.\n"
    return before + _table(("metric", "value", "standard error", "n"), rows) + note


def _ranks(ranks: Mapping[str, int]) -> str:
    live = [rank for rank in ranks.values() if rank]
    kinds: dict[str, list[int]] = {}
    for name, rank in ranks.items():
        kinds.setdefault(place_of(name).kind, []).append(rank)
    rows = [
        (kind, str(len(each)), f"{min(each)}", f"{sum(each) / len(each):.3g}", f"{max(each)}")
        for kind, each in kinds.items()
    ]
    head = f"{len(live)} of {len(ranks)} modules carry an adapter, {sum(live)} components in all.\n\n"
    return head + _table(("matrix", "modules", "least", "mean", "most"), rows)


def _decisions(deciding: Deciding, facts: CardFacts) -> str:
    if facts.averaged:
        return (
            f"This is plain LoRA made of a {deciding.kind} adapter, which decides per input: "
            + (
                "every gate stands at its average over training examples"
                if deciding.what == "modules"
                else "full depth"
            )
            + f". {f'{facts.taught}. ' if facts.taught else ''}"
            + "It is another model than the one that was trained: measure it before it is used.\n"
        )
    shares = list(deciding.usage.values())
    text = (
        f"Needs `pip install rankwise`, and `import rankwise` before it is loaded. Routers and the like are "
        f"{deciding.beside:,} of the adapter parameters; something is open where its probability is above "
        f"{deciding.threshold:.3g}. "
    )
    if shares:
        text += f"On training examples {sum(shares) / len(shares):.1%} of the decisions were open.\n\n"
        kinds: dict[str, list[float]] = {}
        for name, share in deciding.usage.items():
            kinds.setdefault(place_of(name).kind if deciding.what == "modules" else "block", []).append(share)
        rows = [
            (kind, str(len(each)), *(f"{100 * n:.1f}" for n in (min(each), sum(each) / len(each), max(each))))
            for kind, each in kinds.items()
        ]
        text += _table(("matrix", deciding.what, "least % open", "mean", "most"), rows)
    else:
        text += "How often that is was not measured.\n"
    static = f"rankwise export {facts.where} --form static --output path/to/plain/lora"
    return f"{text}\nIt has no merged form. Plain LoRA with decisions at their averages, which has: `{static}`.\n"


def _usage(facts: CardFacts) -> str:
    head = HEADS.get(facts.task_type or "", "")
    labels = f", num_labels={facts.labels}" if facts.labels and facts.form != "merged" else ""
    if facts.form == "merged":
        lines = [f"from transformers import AutoModel{head}, AutoTokenizer", ""]
        lines += [f'model = AutoModel{head}.from_pretrained("{facts.where}")']
        lines += [f'tokenizer = AutoTokenizer.from_pretrained("{facts.where}")']
        return "```python\n" + "\n".join(lines) + "\n```\n"
    base = _hub_id(facts.base) or "path/to/the/base/model"
    lines = [] if facts.deciding is None or facts.averaged else ["import rankwise  # lets PEFT load this type", ""]
    lines += ["from peft import PeftModel", f"from transformers import AutoModel{head}, AutoTokenizer", ""]
    lines += [f'model = AutoModel{head}.from_pretrained("{base}"{labels})']
    lines += [f'model = PeftModel.from_pretrained(model, "{facts.where}")']
    lines += [f'tokenizer = AutoTokenizer.from_pretrained("{base}")']
    return "```python\n" + "\n".join(lines) + "\n```\n"


def _versions(versions: object) -> str:
    if not isinstance(versions, Mapping):
        return ""
    return ", ".join(f"{name} {version}" for name, version in versions.items()) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '·') for cell in line)} |" for line in lines) + "\n"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"


def _hub_id(name: str | None) -> str | None:
    """`name` if it can be an id on the hub, and no folder."""
    if name and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not is_path(name):
        return name
    return None


def is_path(name: str) -> bool:
    """Whether a model's or task's name is a folder or file of some machine."""
    return name.startswith(("/", ".", "~", "\\")) or "\\" in name or Path(name).is_dir() or name.count("/") > 1
