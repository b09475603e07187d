"""Rules on sketches: do gradients reach what is learned?"""

import ast
import re
from collections.abc import Iterator

from rankwise.research.artefacts import Defect
from rankwise.research.checks.registry import Subject, defect, rule
from rankwise.research.checks.sketch import DEEPEST, FUNCTIONS, called, names, parse, source
from rankwise.research.checks.sketch_peft import WHERE

_HARD = ("bernoulli", "round", "argmax", "float", "multinomial", "one_hot", "sign", "heaviside", "int", "long")
_SOFT = ("gumbel_softmax", "RelaxedBernoulli", "RelaxedOneHotCategorical", "log_prob")


@rule("ste_grad_check", "hypothesis", 56)
def straight_through(subject: Subject) -> Iterator[Defect]:
    """A straight-through estimator `hard + p - p.detach()` has the gradient + 1."""
    sketch = parse(subject.code)
    for node in sketch.walk():
        if not _is_sum(node) or _is_sum(sketch.parents.get(node)):
            continue
        terms = list(_terms(node, 1, 0))
        detached = {source(_inner(term)) for _, term in terms if _inner(term) is not term}
        for name in detached:
            slope = sum(sign for sign, term in terms if _inner(term) is term and source(term) == name)
            hard = any(called(one) in _HARD for _, term in terms for one in ast.walk(term) if isinstance(one, ast.Call))
            other = len(terms) > 2
            if slope != 1 and (hard or other):
                text = (
                    f"`{source(node)}`: its derivative with respect to {name} is {slope:+d}, where a straight-through "
                )
                yield defect(
                    f"{text}estimator has +1 (`hard + p - p.detach()`); the gate learns the opposite", 56, where=WHERE
                )


def _is_sum(node: ast.AST | None) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub)


def _terms(node: ast.expr | ast.AST, sign: int, depth: int) -> Iterator[tuple[int, ast.AST]]:
    """Summands with their signs."""
    if depth < DEEPEST and isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        yield from _terms(node.left, sign, depth + 1)
        yield from _terms(node.right, sign if isinstance(node.op, ast.Add) else -sign, depth + 1)
    elif depth < DEEPEST and isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield from _terms(node.operand, -sign, depth + 1)
    else:
        yield sign, node


def _inner(node: ast.AST) -> ast.AST:
    """`p` of `p.detach()`, else the node itself."""
    detaches = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "detach"
    return node.func.value if detaches else node  # type: ignore[attr-defined]


@rule("ste_grad_check", "hypothesis", 77)
def sampled_index(subject: Subject) -> Iterator[Defect]:
    """A sampled index passes no gradient; something else has to."""
    sketch = parse(subject.code)
    if any(word in names(sketch.tree) for word in _SOFT) if sketch.tree else True:
        return
    for node in sketch.calls("multinomial"):
        inside = sketch.inside(node, FUNCTIONS)
        if inside is None or not re.search(r"forward|rout|gate|choose|pick", getattr(inside, "name", "")):
            continue  # drawing data, say
        text = f"`{source(node)}` draws an index, which has no gradient: the task's loss never reaches these "
        yield defect(
            f"{text}probabilities, a penalty alone moves them, and they collapse to the cheapest choice",
            77,
            where=WHERE,
        )


@rule("loss_matches_text", "hypothesis", 59, 78)
def mean_or_sum(subject: Subject) -> Iterator[Defect]:
    """A penalty that the text sums over layers is summed in the sketch too."""
    sums = "Σ" in subject.method or "∑" in subject.method or "sum over" in subject.method.lower()
    if not sums:
        return
    for node in _penalties(subject):
        ranks = next((one for one in ast.walk(node) if isinstance(one, ast.Call) and called(one) == "arange"), None)
        if ranks is not None:
            text = (
                f"`{source(node)}` divides the expected rank by its number of values ({source(ranks)}) and by the "
                "batch, "
            )
            yield defect(
                f"{text}and is no sum over layers; the text has Σ E[k]: λ is off by that factor", 78, where=WHERE
            )
        else:
            text = f"`{source(node)}` is a mean where the text has a sum over layers: λ is off by the number of layers"
            yield defect(text, 59, where=WHERE)


def _penalties(subject: Subject) -> Iterator[ast.Call]:
    """`.mean()` of something that a λ multiplies."""
    sketch = parse(subject.code)
    for node in sketch.walk():
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            weight = source(node.left)
            weighted = "λ" in weight or "lambda" in weight or weight.startswith("lam")
            if weighted and isinstance(node.right, ast.Call) and called(node.right) == "mean":
                yield node.right
