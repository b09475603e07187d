"""Rules on a hypothesis against itself: does its text say one thing?"""

import re
from collections.abc import Iterator

from rankwise.research.artefacts import Defect
from rankwise.research.checks.registry import Subject, defect, rule
from rankwise.research.wording import clause_with, clauses, states


@rule("text_agrees", "hypothesis", 67)
def one_or_many(subject: Subject) -> Iterator[Defect]:
    """What is one per layer is not shared by all layers."""
    for thing in ("router", "gate", "hyper-?network", "generator"):
        each = states(
            subject.method,
            rf"per[- ](?:layer|module) {thing}|{thing} per (?:layer|module)|(?:for )?every (?:LoRA "
            rf")?module[^.\n]{{0,30}}{thing}|f_[lℓ]",
        )
        shared = states(
            subject.setup, rf"{thing}s?\b[^.\n]{{0,30}}\bshared (?:across|by|between|over) (?:all )?(?:layers|modules)"
        )
        if each and shared:
            name = thing.replace("-?", "-")
            yield defect(
                f"the method has a {name} per layer, the setup one {name} that all layers share",
                67,
                where="experimental_setup",
            )


@rule("text_agrees", "hypothesis", 68)
def outputs_for_ranks(subject: Subject) -> Iterator[Defect]:
    """Ranks 0 to R are R + 1 choices."""
    text = subject.method
    ranks = re.search(r"\{\s*0\s*,\s*(?:\.\.\.|…)\s*,\s*([A-Za-z_]\w*|\d+)\s*\}", text)
    if ranks is None:
        return
    largest = ranks[1]
    said = re.search(rf"(?:remaining|other|next)\s+({re.escape(largest)}|\d+)\s+logits", text)
    if said is not None and said[1] == largest:
        text = f"ranks {{0, …, {largest}}} are {largest} + 1 choices, for which the text has {largest} logits"
        yield defect(text, 68, where="method")


@rule("text_agrees", "hypothesis", 69)
def two_ways_off(subject: Subject) -> Iterator[Defect]:
    """There is one way to switch an adapter off."""
    zero = states(subject.method, r"rank[- ]?0 (?:means|is|gives|reproduc)|k\s*=\s*0 means")
    gate = states(subject.method, r"binary (?:depth )?gate|depth gate|gate[^.\n]{0,20}\{0,\s?1\}")
    if zero and gate:
        text = (
            "a binary gate and rank 0 switch the same adapter off: two parameters for one decision, and two penalties"
        )
        yield defect(text, 69, where="method", level="warning")


@rule("text_agrees", "hypothesis", 78)
def idle_penalties(subject: Subject) -> Iterator[Defect]:
    """A grid of penalty weights leaves out the point at which nothing is penalised, or names it as a control."""
    zeros = 0
    for clause in clauses(subject.setup):
        zeros += len(re.findall(r"λ\w{0,6}\s*(?:∈|in)\s*\{\s*0(?:\.0+)?\s*,", clause))
    control = re.search(r"without (?:any )?penalt|no penalt|control", subject.setup, re.I)
    if zeros > 1 and not control:
        text = (
            "the grid holds the point with every penalty at 0, where no budget is asked for; leave it out or call it "
            "the control"
        )
        yield defect(text, 78, where="experimental_setup", level="note")


@rule("train_test_gap", "hypothesis", 79)
def hard_at_the_end(subject: Subject) -> Iterator[Defect]:
    """Decisions that are drawn in training and taken hard at inference are brought together."""
    drawn = clause_with(
        subject.method,
        r"stochastic|\bsampl\w+|Bernoulli|multinomial|straight-through",
        r"gate|\branks?\b|rout|logit|adapter",
    )
    hard = states(
        subject.method, r"(?:hard|deterministic)\s+(?:argmax|(?:hard )?gate|decision)|\bargmax\b|1\[p\S* ?> ?\S+\]"
    )
    bridged = re.search(
        r"anneal\w*|temperature|calibrat\w*|same (?:hard )?(?:rule|decision)s? in training|target (?:share|rate)|"
        r"tracked",
        subject.words,
        re.I,
    )
    if drawn and hard and not bridged:
        text = (
            "training draws its choices and inference takes the likelier one: a gate of 0.3 is open in 30 % of the "
            "draws and never "
            "at inference, so accuracy and cost of the two differ. Anneal a temperature, and measure at inference"
        )
        yield defect(text, 79, where="method", level="warning")


@rule("cache_key", "hypothesis", 80)
def cache(subject: Subject) -> Iterator[Defect]:
    """A cache's key repeats."""
    clause = states(subject.words, r"\bcach\w+")
    if (
        clause
        and re.search(r"\bh(?:_\w|ℓ|l)?\b|hidden state|activation|continuous", clause)
        and re.search(r"repeat|reuse|same", clause, re.I)
    ) and not re.search(r"\bKV\b|key-value|quanti[sz]|cluster|round|hash|nearest|discrete", clause, re.I):
        text = "the cache is keyed by activations, which are real numbers and repeat for no second input: it never hits"
        yield defect(text, 80, where="method")
