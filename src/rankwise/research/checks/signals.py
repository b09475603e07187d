"""Rules on what decides: gradient norms as importance, premises about other methods, penalties on gates."""

import re
from collections.abc import Iterator

from rankwise.research.artefacts import Defect, Paper
from rankwise.research.checks.registry import Subject, defect, rule
from rankwise.research.checks.sketch import names, parse, source
from rankwise.research.wording import clauses, plain, short, states

_NORM = r"gradient[- ](?:Frobenius[- ])?norms?|norm of (?:its|the|each|every) [\w ]{0,20}gradient|\|\|?∂L/∂|∥∂L/∂"
_UPDATE_GRADIENT = r"(?:∂L|dL)\s?/\s?[∂d]\s?(?:Δ|W|ΔW|Delta)|gradient of (?:the )?(?:LoRA )?(?:update|Δ)"


def ranks_by_gradient(subject: Subject) -> bool:
    """Are ranks given by gradient norms?"""
    shares = re.search(r"alloc|assign|\bgiv\w+|proportion|importan|\bscor|\branks? by\b", subject.method, re.I)
    norm = any(re.search(_NORM, one, re.I) and not re.search(r"\bclip", one, re.I) for one in clauses(subject.method))
    return norm and bool(shares) and bool(re.search(r"\branks?\b", subject.method, re.I))


@rule("gradient_signal", "hypothesis", 8, 9)
def which_gradient(subject: Subject) -> Iterator[Defect]:
    """The gradient that is meant is one that backpropagation gives, and comparable over matrices."""
    if not ranks_by_gradient(subject):
        return
    meant = states(subject.method, _UPDATE_GRADIENT)
    hooked = next((one for one in parse(subject.code).calls("register_hook")), None)
    derived = states(subject.words, r"\bestimat\w+[^.\n]{0,60}(?:gradient|∂)|unbiased|divid\w+ by s\b")
    if meant and not derived:
        uses = f"; the sketch takes `{source(hooked)}`" if hooked is not None and "lora_B" in names(hooked) else ""
        text = (
            "no backward pass has the gradient with respect to the update: B A is never one tensor. ∂L/∂B is s (∂L/∂Δ) "
            "Aᵀ, "
            f"seen through A's random start and scaled; ∂L/∂A is 0 at the first step, where B is 0{uses}"
        )
        yield defect(text, 8, where="method")
    if not re.search(
        r"normali[sz]|per parameter|relative to (?:its|the) size|root mean square|\brms\b|divid\w+ by (?:the )?(?:√|"
        r"sqrt|number)",
        subject.words,
        re.I,
    ):
        text = (
            "norms of matrices of different shape and scaling are compared as they are: they grow with the number of "
            "entries, "
            "with alpha / r, and with loss scaling, accumulation and clipping, which a hook sees before or after"
        )
        yield defect(text, 9, where="method", level="warning")


@rule("gradient_signal", "hypothesis", 10)
def controls_of_the_signal(subject: Subject) -> Iterator[Defect]:
    """A score that is to be importance has a random and an inverse control."""
    if ranks_by_gradient(subject) and not re.search(
        r"\brandom\w*|\binvers\w+|\breversed\b|\bshuffled\b", subject.setup, re.I
    ):
        text = (
            "a large gradient is not importance (a matrix that has converged has a small one): without random and "
            "reversed "
        )
        yield defect(
            f"{text}allocation at the same budget a gain cannot be put down to the score",
            10,
            where="experimental_setup",
            level="warning",
        )


_RUNS = r"(?:need|requir|comput|run|perform|us|pay)\w*"
_NEEDS_SVD = re.compile(
    rf"\bAdaLoRA\b[^.;\n]{{0,40}}\b{_RUNS}\b[^.;\n]{{0,30}}\bSVDs?\b|\bAdaLoRA(?:'s)? (?:\w+[ -]){{0,3}}SVD[- ]based "
    rf"(?:importance|analysis)|"
    r"\bAdaLoRA\b[^.;\n]{0,90}\bSVD[- ]based (?:importance|analysis)|\bSVD[- ]based importance[^.;\n]{0,80}\bAdaLoRA\b",
    re.I,
)
_CORRECT = re.compile(
    r"\b(?:no|without|avoids?|circumvents?|instead of|rather than|form of|parametri[sz]\w*)\b[^.;\n]{0,40}\bSVD|SVD[- "
    r"](?:like|form|parametri)",
    re.I,
)


@rule("premise", "hypothesis", 15)
def what_adalora_costs(subject: Subject) -> Iterator[Defect]:
    """AdaLoRA computes no SVD and no extra pass; its overhead is scores and a penalty."""
    for clause in clauses(subject.words):
        found = _NEEDS_SVD.search(clause)
        if found is None or _CORRECT.search(clause):
            continue
        paper = paper_of("adalora", subject.papers)
        passage = _saying(paper, r"approximat|PΛQ|P Λ Q|regulari[sz]ation") if paper else ""
        quote = f' ({paper.id}: "{short(passage)}")' if paper and passage else ""
        text = (
            "AdaLoRA runs no SVD and no extra forward or backward pass: it trains P Λ Q with an orthogonality penalty "
            "and "
            f"averages |weight x gradient|{quote}. What it costs is that bookkeeping"
        )
        yield defect(text, 15, where="open_problems")
        return


def paper_of(method: str, papers: tuple[Paper, ...]) -> Paper | None:
    """The paper that brings a method, by its name or title."""
    titles = {"adalora": "adaptive budget allocation"}
    for paper in papers:
        head = plain(f"{paper.title} {' '.join(one.text for one in paper.contributions)[:400]}").lower()
        if titles.get(method, method) in plain(paper.title).lower() or re.search(
            rf"propos\w+ {re.escape(method)}\b", head
        ):
            return paper
    return None


def _saying(paper: Paper, pattern: str) -> str:
    for statement in (*paper.methodology, *paper.contributions):
        for clause in clauses(statement.text):
            if re.search(pattern, clause, re.I):
                return clause
    return ""


@rule("gauge", "hypothesis", 53)
def gate_that_can_be_undone(subject: Subject) -> Iterator[Defect]:
    """A penalty on a gate that multiplies B A is undone by a larger B A, and reaches zero with a proximal step only."""
    gate = states(
        subject.method, r"W['′]?\s*=\s*W[_0₀]*\s*\+\s*g\S{0,3}\s*[·*]\s*B\s?A|scalar gates?[^.\n]{0,60}multipl"
    )
    lasso = states(subject.method, r"\bL1\b|λ\s*[·*]?\s*Σ?\S{0,3}\s*\|g")
    mended = re.search(
        r"proximal|soft[- ]threshold|normali[sz]|‖BA‖|norm of (?:the )?(?:B ?A|update)|weight decay on B",
        subject.words,
        re.I,
    )
    if gate and lasso and not mended:
        text = (
            "g · B A is the same for g / c and c · B A: an L1 penalty on g alone is met by a small g and a large B A, "
            "and "
            "gradient steps do not reach exactly 0. Penalise g · ‖B A‖ with a proximal step"
        )
        yield defect(text, 53, where="method")


@rule("pooling_mask", "hypothesis", 60)
def pooled_padding(subject: Subject) -> Iterator[Defect]:
    """A mean over tokens leaves padding out."""
    if re.search(r"\bmask", subject.words + subject.code, re.I):
        return
    for node in parse(subject.code).calls("mean"):
        first = node.args[0] if node.args else None
        on_tokens = getattr(first, "value", None) == 1 and source(node.func).split(".")[0] in (
            "x",
            "h",
            "hidden_states",
            "hidden",
            "inputs",
        )
        if on_tokens:
            text = (
                f"`{source(node)}` is a mean over tokens with padding in it: the decision depends on the longest text "
                "of the batch"
            )
            yield defect(text, 60, where="experimental_code", level="warning")
            return
