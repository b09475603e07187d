"""The fixed judge: what code can decide about papers, hypotheses, designs, run configs and reviews.

Nothing here asks a language model, runs a sketch of code or imports torch. Each function returns every defect found,
errors first; none found is an empty tuple. `docs/defects.md` lists what is known to go wrong, by number.
"""

from collections.abc import Mapping, Sequence

from rankwise.research.artefacts import Defect, Design, Hypothesis, Paper
from rankwise.research.checks import families as families
from rankwise.research.checks.registry import RULES as RULES
from rankwise.research.checks.registry import Rule as Rule
from rankwise.research.checks.registry import Subject, run
from rankwise.research.checks.registry import in_order as in_order
from rankwise.research.imported import Imported, ImportedReview


def check_hypothesis(
    hypothesis: Hypothesis, *, history: Sequence[Hypothesis] = (), papers: Sequence[Paper] = ()
) -> tuple[Defect, ...]:
    """What is wrong with a hypothesis, by itself, against the rounds before it (oldest first) and prior papers."""
    return run("hypothesis", Subject(hypothesis, tuple(history), tuple(papers)))


def check_design(
    design: Design, hypothesis: Hypothesis | None = None, *, papers: Sequence[Paper] = ()
) -> tuple[Defect, ...]:
    """What is wrong with a design, by itself and as a test of the hypothesis."""
    return run("design", Subject(hypothesis, papers=tuple(papers), design=design))


def check_configs(configs: Mapping[str, str], imported: Imported | None = None) -> tuple[Defect, ...]:
    """What is wrong with run configs (name to YAML text), each by itself, together, and against their record."""
    hypothesis = imported.rounds[-1].hypothesis if imported and imported.rounds else None
    return run("configs", Subject(hypothesis, configs=dict(configs), imported=imported))


def check_papers(papers: Sequence[Paper]) -> tuple[Defect, ...]:
    """What is wrong with a list of prior papers."""
    return run("papers", Subject(papers=tuple(papers)))


def check_review(review: ImportedReview, papers: Sequence[Paper] = ()) -> tuple[Defect, ...]:
    """What is wrong with a machine review, against itself, the papers and what our methods need to be told."""
    return run("review", Subject(papers=tuple(papers), review=review))


def check_record(imported: Imported) -> tuple[Defect, ...]:
    """Everything that applies to a record: its papers, every round, its configs and design, its review, its form."""
    found: list[Defect] = [*check_papers(imported.papers)]
    rounds = [one.hypothesis for one in imported.rounds]
    for number, hypothesis in enumerate(rounds):
        defects = check_hypothesis(hypothesis, history=rounds[:number], papers=imported.papers)
        prefix = f"hypothesis.{number:03d}." if len(rounds) > 1 else "hypothesis."
        found += [one.model_copy(update={"where": f"{prefix}{one.where}".rstrip(".")}) for one in defects]
    if imported.configs or imported.design_text:
        found += check_configs(imported.configs, imported)
    if imported.review is not None:
        found += check_review(imported.review, imported.papers)
    return in_order([*found, *check_import(imported)])


def check_import(imported: Imported) -> tuple[Defect, ...]:
    """What only a record as a whole shows: its design's text against its hypothesis, how it was answered and judged."""
    last = imported.rounds[-1].hypothesis if imported.rounds else None
    return run("record", Subject(last, papers=imported.papers, imported=imported))
