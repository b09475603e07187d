"""Rules on costs: no saving is larger than the share of what is saved on, no generator smaller than what it writes."""

import ast
import re
from collections.abc import Iterator

from rankwise.research.artefacts import Defect
from rankwise.research.checks.facts import adapter_share, facts_of, known_models, targets
from rankwise.research.checks.registry import Subject, defect, rule
from rankwise.research.checks.sketch import constants, evaluate, parse, source
from rankwise.research.wording import clauses, states

TOKENS = 25
"""Tokens of a sentence as SST-2 has them on average, for comparing costs per example with costs per token."""
_SKIPS = (
    r"\bskip\w*[^.\n]{0,40}\b(?:blocks?|frozen layers?|transformer layers?)\b|early[- ]exit|\bblocks? (?:is|are) "
    r"(?:skipped|bypassed)\b"
)
_PER_INPUT = r"per[- ](?:input|example|sentence|instance)|for each (?:example|input)|input[- ]conditional|\brouters?\b"
_GENERATES = (
    r"hyper-?network|hypermodel|HyperLoRA|\bgenerat\w+ (?:the |its )?(?:A and B|weights|factors|adapters?|parameters)"
)


def _rank(subject: Subject) -> int:
    match = re.search(r"\br_?max\s*=\s*(\d{1,3})\b", subject.words)
    return int(match[1]) if match else subject.settings.rank or 8


@rule("flops_bound", "hypothesis", 54, 58, 71)
def inference_bound(subject: Subject) -> Iterator[Defect]:
    """Leaving adapters out saves at most their share of the FLOPs, and nothing once they are merged."""
    facts = min(known_models(subject), key=lambda one: one.hidden_size, default=None)
    about_adapters = re.search(r"LoRA\b|\badapters?\b", subject.words, re.I)
    if facts is None or not about_adapters or states(subject.method, _SKIPS):
        return
    part = adapter_share(facts.hidden_size, _rank(subject))
    most = part / (1 + part)
    for one in subject.predictions:
        if one.quantity not in ("inference_flops", "latency_ms") or one.form != "change" or -one.high <= most:
            continue
        said = f"inference FLOPs are to fall by {-one.high:.0%}{f' ({one.variant})' if one.variant else ''}"
        base = (
            f"{said}; rank {_rank(subject)} on every linear layer of width {facts.hidden_size} is {part:.2%} of their "
            f"FLOPs, so without any adapter {most:.2%} less than unmerged LoRA"
        )
        if states(subject.method, _PER_INPUT):
            text = f"{base}; a choice per input rules out merging, which costs nothing: it adds compute"
            yield defect(text, 71 if states(subject.method, _GENERATES) else 58, where=one.where)
        else:
            yield defect(f"{base}, and merged LoRA has no adapter FLOPs to save", 54, where=one.where)


@rule("flops_bound", "hypothesis", 64)
def own_constraint(subject: Subject) -> Iterator[Defect]:
    """What is expected meets the constraint in the primary metric."""
    metric = subject.hypothesis.primary_metric if subject.hypothesis else ""
    cap = re.search(r"(?:≤|<=|<|at most|under|up to)\s*(\d+(?:\.\d+)?)\s?%\s*(?:of\s+)?([^)]{0,40})", metric)
    if cap is None or not re.search(r"FLOP|compute", metric, re.I):
        return
    for one in subject.predictions:
        if (
            one.quantity == "inference_flops"
            and one.form == "change"
            and not one.variant
            and 1 + one.high > float(cap[1]) / 100
        ):
            text = (
                f"the primary metric allows at most {cap[1]} % of {cap[2].strip() or 'the FLOPs'}; a cut by "
                f"{-one.high:.0%} leaves {1 + one.high:.0%}"
            )
            yield defect(text, 64, where="primary_metric")


@rule("flops_bound", "hypothesis", 52, 57)
def closed_gates(subject: Subject) -> Iterator[Defect]:
    """A gate that multiplies is computed even if closed, forward and backward."""
    for clause in clauses(subject.method):
        if re.search(r"(?:zero|no) gradients?", clause, re.I) and re.search(r"time|faster|sav", clause, re.I):
            text = "a gate of 0 makes gradients zero, and they are computed all the same"
            facts = facts_of(subject)
            limit = 1.5 * adapter_share(facts.hidden_size, _rank(subject)) if facts else None
            bound = f": without any adapter a step on a frozen model takes {limit:.1%} fewer FLOPs" if limit else ""
            yield defect(
                f"{text}; removing the modules during training is what would save time{bound}", 52, where="method"
            )
            break
    no_gradient = states(
        subject.method, r"bypassed and receives? no gradient|receives? no gradient|no gradient (?:flows|reaches)"
    )
    if no_gradient and re.search(r"straight-through", subject.method, re.I):
        text = (
            "a straight-through estimator gives the gate a gradient whether it is open or closed, for which the "
            "adapter's "
        )
        yield defect(
            f"{text}output has to be computed; `no gradient when closed` contradicts it",
            57,
            where="method",
            level="warning",
        )


def _generators(subject: Subject) -> Iterator[tuple[ast.Call, float, float]]:
    """Layers of the sketch that write a pair of factors: (call, width in, numbers out)."""
    facts = facts_of(subject)
    width, rank = (facts.hidden_size if facts else 768), _rank(subject)
    sizes = dict.fromkeys(
        ("h", "hidden", "hidden_size", "d", "d_in", "d_out", "in_features", "out_features", "d_model"), float(width)
    )
    values = {**constants(parse(subject.code)), **sizes, **dict.fromkeys(("r_max", "r", "rank"), float(rank))}
    for node in parse(subject.code).calls("Linear"):
        if (
            len(node.args) < 2
            or not ({"r_max", "r", "rank"} & _names(node.args[1]))
            or not ({"d_in", "d_out", "in_features", "out_features"} & _names(node.args[1]))
        ):
            continue
        inputs, outputs = evaluate(node.args[0], values), evaluate(node.args[1], values)
        if inputs and outputs:
            yield node, inputs, outputs


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)} | {
        one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)
    }


@rule("param_bound", "hypothesis", 70)
def generator_size(subject: Subject) -> Iterator[Defect]:
    """A network that writes weights holds more than it writes, unless it is factorised."""
    facts = facts_of(subject)
    for node, inputs, outputs in _generators(subject):
        held = inputs * outputs
        text = (
            f"`{source(node)}` holds {inputs:.0f} x {outputs:,.0f} = {held / 1e6:.1f}M parameters to write the "
            f"{outputs:,.0f} of one "
            f"adapter: {inputs:.0f} times as many"
        )
        if facts:
            every = targets(facts)[-1]
            static = _rank(subject) * every.rank_cost
            text += (
                f"; one per block {facts.layers * held / 1e6:.0f}M, for all {every.matrices} matrices "
                f"{inputs * static / 1e9:.2f}G, "
                f"against {static / 1e6:.2f}M of static adapters and {facts.parameters / 1e6:.0f}M of the model"
            )
        said = states(
            subject.words,
            r"\btiny\b[^.\n]{0,30}(?:hyper|network)|memory[^.\n]{0,20}(?:↓|-|by )\s?\d+|\b0\b[^.\n]{0,8}\bRAM\b|"
            r"eliminat\w+ adapter storage",
        )
        yield defect(f"{text}. A smaller memory is not to be had so" if said else text, 70, where="experimental_code")
        width = re.search(r"hidden\s*(?:→|->)\s*(\d+)\s*·?\s*r_?max\s*[·*]?\s*d_?in", subject.method)
        if width and facts:
            written = float(width[1]) * _rank(subject) * facts.hidden_size
            if written != outputs:
                text = f"the text's generator writes {written:,.0f} numbers, the sketch's {outputs:,.0f}"
                yield defect(text, 70, where="method")


@rule("flops_bound", "hypothesis", 71)
def generating(subject: Subject) -> Iterator[Defect]:
    """Writing factors costs more than using them on a short text, and all of them are written."""
    masked = re.search(r"mask\w*[^.\n]{0,40}FLOPs|FLOPs scale with k", subject.method, re.I)
    for node, inputs, outputs in _generators(subject):
        flops, using = 2 * inputs * outputs, 2 * TOKENS * outputs
        text = (
            f"`{source(node)}` takes {flops / 1e6:.1f} MFLOPs per matrix and example, {flops / using:.1f} times what "
            "applying "
            f"the adapter to {TOKENS} tokens takes"
        )
        ends = "; nothing in the sketch makes it depend on k" if masked else ""
        yield defect(f"{text}{ends}", 71, where="experimental_code")
