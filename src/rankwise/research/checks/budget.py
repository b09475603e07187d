"""Rules on budgets: do the numbers of ranks and parameters that a text gives agree with each other and the model?"""

import re
from collections.abc import Iterator

from rankwise.experiments.model_facts import ModelFacts
from rankwise.research.artefacts import Defect
from rankwise.research.checks.facts import facts_of, targets
from rankwise.research.checks.registry import Subject, defect, listed, rule
from rankwise.research.checks.sketch import constants, parse
from rankwise.research.wording import clause_with, clauses, states

_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s?%\s+(?:of (?:all |the )?)?(?:trainable )?param", re.I)
_IN_PARAMETERS = (
    r"parameters?[^.\n]{0,40}\bbudget|\bbudget[^.\n]{0,40}\b(?:of|in) (?:[\d,.]+ ?[kM]? )?(?:adapter )?parameters"
)
_SAME_SHAPES = r"\bquery and value\b|\bWq and Wv\b|\bq_proj and v_proj\b|\bonly (?:the )?attention projections\b"
_ADAPTIVE = r"\b(?:re-?)?alloc\w+|\bassign\w*[^.\n]{0,30}\branks?\b|\brank(?:s)? per (?:matrix|module|layer)\b"


def said_totals(subject: Subject) -> dict[str, int]:
    """Total ranks that text and sketch give as a number, by where they come from."""
    found = {f"the text's {value}": value for value in subject.settings.budgets}
    for name, value in constants(parse(subject.code)).items():
        if re.search(r"total_?rank|rank_?budget|budget_?ranks?", name, re.I) and value == int(value) and value > 0:
            found[f"the sketch's {name}={int(value)}"] = int(value)
    return found


@rule("budget_arith", "hypothesis", 1)
def one_budget(subject: Subject) -> Iterator[Defect]:
    """Every total rank that is given is the same for one choice of matrices."""
    facts, totals = facts_of(subject), said_totals(subject)
    products = [factor for counted, factor in subject.settings.rank_expressions if counted == "matrices"]
    if len(set(totals.values())) > 1:
        yield defect(f"total ranks disagree: {listed(list(totals))}", 1, where="method")
    if facts is None or not products or not totals:
        return
    for factor in products:
        readings = {
            f"{one.matrices} x {factor} = {one.matrices * factor} ({one.words})": one.matrices * factor
            for one in targets(facts)
        }
        for words, total in totals.items():
            if total not in readings.values():
                means = "; ".join(
                    f"{total} is {total / one.matrices:.2f} per matrix of {one.words}" for one in targets(facts)
                )
                text = f"matrices x {factor} is {' or '.join(readings)}, and {words} is neither: {means}"
                yield defect(text, 1, where="experimental_setup")


@rule("budget_arith", "hypothesis", 2, 4)
def equal_budgets(subject: Subject) -> Iterator[Defect]:
    """Uniform and adaptive arms spend the same, at the end and while they train."""
    facts, rank, totals = facts_of(subject), subject.settings.rank, said_totals(subject)
    if facts is None or rank is None or not totals:
        return
    products = [one.matrices * rank for one in targets(facts)]
    if any(total in products for total in totals.values()) or not states(subject.words, _ADAPTIVE):
        return
    total = min(totals.values())
    spent = listed([f"{one.matrices * rank} ({one.words})" for one in targets(facts)])
    yield defect(
        f"uniform rank {rank} spends {spent} ranks, the adaptive arms {total}: not the same budget",
        2,
        where="experimental_setup",
    )
    if states(subject.method, r"\bwarm-?up|\binitial(?:ly)? (?:uniform )?rank") and not clause_with(
        subject.words, r"\bpeak\b"
    ):
        low = min(products)
        if low > total:
            text = (
                f"training starts at rank {rank} everywhere, {low} ranks or more, and ends at {total}: say whether the "
            )
            yield defect(
                f"{text}budget is the final count, the peak or the mean over training",
                4,
                where="method",
                level="warning",
            )


@rule("budget_arith", "hypothesis", 5)
def ranks_or_parameters(subject: Subject) -> Iterator[Defect]:
    """Equal rank is equal parameters only where all matrices have one shape."""
    facts = facts_of(subject)
    same = states(
        subject.expected,
        r"param\w*(?: count)?\W{1,3}(?:is |are )?(?:identical|equal|the same)|(?:identical|same|equal) (?:number of "
        r")?param",
    )
    in_ranks = subject.settings.rank_expressions or said_totals(subject)
    excused = states(subject.words, _IN_PARAMETERS) or states(subject.words, _SAME_SHAPES)
    if facts is None or not same or not in_ranks or excused or not states(subject.words, _ADAPTIVE):
        return
    narrow, wide = 2 * facts.hidden_size, 5 * facts.hidden_size
    text = (
        f"a rank costs {narrow:,} parameters on a {facts.hidden_size} x {facts.hidden_size} matrix and {wide:,} on one "
        "of the "
        f"feed-forward part: the same total rank is not the same number of parameters; give the budget in parameters"
    )
    yield defect(text, 5, where="expected_result")


def _readings(facts: ModelFacts, rank: int) -> list[tuple[str, float]]:
    whole, backbone = facts.parameters, facts.backbone
    found = []
    for one in targets(facts):
        adapters = rank * one.rank_cost
        found.append((f"{adapters / whole:.2%} of all {whole / 1e6:.0f}M on {one.words}", adapters / whole))
        found.append(
            (f"{adapters / backbone:.2%} of the {backbone / 1e6:.0f}M without embeddings", adapters / backbone)
        )
    return found


@rule("param_bound", "hypothesis", 3)
def share_of_parameters(subject: Subject) -> Iterator[Defect]:
    """A stated share of parameters is what the stated rank takes, for some choice of matrices."""
    facts = facts_of(subject)
    for clause in clauses(subject.setup):
        rank = re.search(r"\b(?:r|rank)\s*=\s*(\d{1,3})\b", clause)
        said = _SHARE.search(clause)
        if facts is None or rank is None or said is None:
            continue
        share, readings = float(said[1]) / 100, _readings(facts, int(rank[1]))
        if all(abs(share / true - 1) > 0.1 for _, true in readings):
            shown = ", ".join(words for words, _ in readings)
            yield defect(
                f"rank {rank[1]} is said to be {said[1]} % of the parameters; it is {shown}",
                3,
                where="experimental_setup",
            )


@rule("budget_arith", "hypothesis", 65)
def ranks_of_full_lora(subject: Subject) -> Iterator[Defect]:
    """The total rank of plain LoRA is matrices times rank."""
    facts, rank = facts_of(subject), _largest_rank(subject)
    if facts is None or rank is None:
        return
    for one in subject.predictions:
        if one.quantity != "total_rank" or "lora" not in one.subject.lower() or one.form != "value":
            continue
        readings = {each.matrices * rank: each for each in targets(facts)}
        if int(one.low) not in readings and not _fits(one.low, rank, facts):
            each = targets(facts)[-1]
            text = (
                f"{one.low:.0f} ranks are said of {one.subject}; {each.matrices} matrices x rank {rank} = "
                f"{each.matrices * rank}"
            )
            count = " (that is the number of matrices)" if one.low == each.matrices else ""
            yield defect(f"{text}{count}", 65, where="expected_result")


def _fits(total: float, rank: int, facts: ModelFacts) -> bool:
    """Is it a whole number of matrices per block, at that rank?"""
    per_layer = total / (rank * facts.layers)
    return per_layer == int(per_layer) and 1 <= per_layer <= 6


def _largest_rank(subject: Subject) -> int | None:
    match = re.search(r"\br_?max\s*=\s*(\d{1,3})\b", subject.words)
    return int(match[1]) if match else subject.settings.rank
