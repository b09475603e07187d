"""What an answer must have beyond its type before it is worth evaluating: a name, claims that a run could decide."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from rankwise.research.artefacts import Claim, Hypothesis, Paper

MOST_POINTS = 0.5
"""A predicted difference of accuracies beyond this is a mistake of unit."""
_CLAIM = re.compile(r"\b[Cc]laim\s+([A-Z]\d{1,3})\b")


def hypothesis_problems(hypothesis: Hypothesis) -> list[str]:
    """What is wrong with a proposal's form, one sentence each with its path."""
    problems = []
    if not hypothesis.title.strip():
        problems.append("title: is empty; give the method a name")
    if not hypothesis.primary_metric.strip():
        problems.append("primary_metric: is empty; name the metric that decides")
    if not hypothesis.claims:
        problems.append("claims: is empty; every testable sentence of expected_result is a claim")
    for name, count in Counter(claim.id for claim in hypothesis.claims).items():
        if count > 1:
            problems.append(f"claims: {count} have the id {name}; each needs its own")
    for claim in hypothesis.claims:
        problems.extend(f"claims.{claim.id}{problem}" for problem in _claim_problems(claim))
    return problems


def _claim_problems(claim: Claim) -> list[str]:
    if claim.kind == "not-testable":
        return [] if claim.reason.strip() else [".reason: is empty; say why it cannot be tested"]
    problems = [] if claim.arm else [".arm: is missing; name the method that the claim is about"]
    if claim.kind == "bound":
        problems += _bound_problems(claim)
    elif not claim.reference:
        problems.append(f".reference: is missing; {claim.kind} compares with another method")
    if claim.arm and claim.arm == claim.reference:
        problems.append(f".reference: is the arm itself ({claim.arm})")
    if claim.kind in ("equivalence", "non-inferiority") and claim.margin == 0:
        problems.append(f".margin: is 0; {claim.kind} needs one above 0")
    points = claim.expected if claim.quantity == "accuracy" else None
    if points is not None and abs(points) > MOST_POINTS:
        problems.append(f".expected: is {points:g}, {100 * points:g} points of accuracy; 0.006 is 0.6 points")
    return problems


def _bound_problems(claim: Claim) -> list[str]:
    if claim.at_most is None and claim.at_least is None:
        return [".at_most: a bound needs at_most or at_least"]
    if claim.at_most is not None and claim.at_least is not None and claim.at_least > claim.at_most:
        return [f".at_least: is {claim.at_least:g}, above at_most ({claim.at_most:g})"]
    return []


def refinement_problems(hypothesis: Hypothesis, history: Sequence[Hypothesis]) -> list[str]:
    """What is wrong with the form of a refinement of the last round of a history."""
    problems, before = hypothesis_problems(hypothesis), history[-1]
    known = {claim.id for one in (*history, hypothesis) for claim in one.claims}
    strange = set(_CLAIM.findall(hypothesis.changes)) - known if before.claims else set()
    problems += [f"changes: speaks of claim {name}, and no round has a claim of that id" for name in sorted(strange)]
    if not hypothesis.changes.strip():
        problems.append("changes: is empty; say what changed against the current hypothesis, and why")
    if hypothesis.model_copy(update={"changes": before.changes}) == before:
        problems.append("the hypothesis is the current one, word for word; refine it")
    return problems


class MendOnce:
    """Problems for a proposal: its form always; what the checks find goes back once. What is still wrong then stays in
    the proposal and is found again by its evaluation, where everybody sees it."""

    def __init__(
        self,
        form: Callable[[Hypothesis], list[str]],
        history: Sequence[Hypothesis],
        papers: Sequence[Paper],
    ) -> None:
        self._form = form
        self._history = history
        self._papers = papers
        self._said = False

    def __call__(self, hypothesis: Hypothesis) -> list[str]:
        """What goes back to the model."""
        problems = self._form(hypothesis)
        if self._said:
            return problems
        from rankwise.research.checks import check_hypothesis

        defects = check_hypothesis(hypothesis, history=self._history, papers=self._papers)
        wrong = [f"{item.where or 'as a whole'}: {item.message}" for item in defects if item.level == "error"]
        self._said = bool(wrong)
        return [*problems, *wrong]
