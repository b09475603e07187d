"""An asker that answers like a sensible model, without one: three rounds on where LoRA rank goes.

Answers depend on the prompt alone, never on what was asked before, so that a run that was killed and goes on gets the
same ones. `more` adds answers for other types: name of the type to a function of the prompt.
"""

import re
from collections.abc import Callable, Mapping

from rankwise.errors import ModelAnswerError
from rankwise.research.artefacts import (
    Artefact,
    Claim,
    Closest,
    Dataset,
    Design,
    DesignArm,
    Hypothesis,
    Opinion,
    Papers,
    Score,
)
from rankwise.research.asking import Answer, Prompt
from rankwise.research.conversation import Reply, digest, first_messages, schema_of
from rankwise.research.project import Made
from rankwise.research.review_types import ProposedComment, ReviewProse
from rankwise.research.summaries import Said, Summary

MODEL = "scripted"
SETUP = (
    "Base model: all-MiniLM-L6-v2. Task: docstrings, a class per package, decided by accuracy on its validation split. "
    "Arms: LoRA of rank 4 on all linear modules, AdaLoRA, GLoRA and random allocation, all with the adapter parameters "
    "of LoRA of rank 4. 60 optimizer steps of 8 examples, learning rate 0.003 for every arm, 3 seeds."
)
CLAIMS = (
    Claim(
        id="C1",
        text="GLoRA is at least as accurate as LoRA, up to one point.",
        kind="non-inferiority",
        arm="GLoRA",
        reference="LoRA",
        margin=0.01,
        expected=0.005,
        tasks=("docstrings",),
    ),
    Claim(
        id="C2",
        text="GLoRA and AdaLoRA are equally accurate, within two points.",
        kind="equivalence",
        arm="GLoRA",
        reference="AdaLoRA",
        margin=0.02,
        expected=0.0,
        tasks=("docstrings",),
    ),
)
RANDOM = Claim(
    id="C3",
    text="GLoRA is more accurate than random allocation.",
    kind="superiority",
    arm="GLoRA",
    reference="random",
    expected=0.01,
    tasks=("docstrings",),
)
PARAMETERS = Claim(
    id="C4",
    text="GLoRA ends with no more adapter parameters than LoRA.",
    kind="bound",
    arm="GLoRA",
    reference="LoRA",
    quantity="parameters",
    metric="parameters",
    at_most=1.0,
    tasks=("docstrings",),
)
FIRST = Hypothesis(
    title="Gradient-norm rank allocation (GLoRA)",
    open_problems="LoRA gives every matrix the same rank. AdaLoRA moves rank, at the price of a score per triplet.",
    method=(
        "Train LoRA for a short warm-up and keep a running mean of each matrix's gradient norm. Then give ranks in "
        "proportion to it, by largest remainder, at the same number of adapter parameters, keeping what was learned."
    ),
    experimental_setup=SETUP,
    primary_metric="accuracy",
    expected_result="GLoRA is no worse than LoRA by more than one point and within two points of AdaLoRA.",
    expected_conclusion="A signal that training gives for free may do for allocation.",
    claims=CLAIMS,
)
SECOND = FIRST.model_copy(
    update={
        "method": FIRST.method.replace("gradient norm.", "gradient norm, as a root mean square over its entries."),
        "expected_result": f"{FIRST.expected_result} It is more accurate than random allocation by about one point.",
        "claims": (*CLAIMS, RANDOM),
        "changes": (
            "Adds the control that tells allocation from chance: ranks drawn at random at the same budget. Norms are "
            "root mean squares now, because code found that matrices of different shape were compared."
        ),
    }
)
THIRD = SECOND.model_copy(
    update={
        "method": f"{SECOND.method} The budget is counted in parameters, so that wide matrices pay for their width.",
        "expected_result": f"{SECOND.expected_result} It ends with no more adapter parameters than LoRA.",
        "claims": (*CLAIMS, RANDOM, PARAMETERS),
        "changes": "States the budget in parameters instead of ranks, and claims it, so that it is measured too.",
    }
)
ROUNDS = (FIRST, SECOND, THIRD)
MARKS = ((4, 5, 8, 7), (5, 6, 8, 8), (5, 6, 9, 9))
"""Novelty, significance, feasibility and consistency of each round."""


ARMS = {"LoRA": "lora", "AdaLoRA": "adalora", "GLoRA": "glora", "random": "random"}
ROLES = {"glora": "proposed", "adalora": "comparative", "lora": "comparative", "random": "control"}
DESIGN = Design(
    name="gradient-norm",
    question="Do gradient norms of a warm-up say where rank should go?",
    model="minilm",
    arms=tuple(DesignArm(name=m, role=ROLES[m], method={"name": m}, said=said) for said, m in ARMS.items()),
    datasets=(Dataset(task="docstrings", said="docstrings"),),
    budgets=("r=4",),
    seeds=3,
    training={"max_steps": 60, "batch_size": 8, "learning_rate": 0.003},
    claims=tuple(
        claim.model_copy(update={"arm": ARMS[claim.arm or ""], "reference": ARMS[claim.reference or ""]})
        for claim in THIRD.claims
    ),
)
PROSE = ReviewProse(
    summary="A warm-up's gradient norms decide where rank goes, at the parameters of plain LoRA.",
    significance="Of use where a verdict supports it; a small model and a short run say little about large ones.",
    carries="The running mean of gradient norms, and the resize that keeps what was learned.",
    between_lines=("The same norms could say when the warm-up may end.",),
    comments=(
        ProposedComment(
            severity="minor",
            objection="One small task says little about others.",
            wants="The same plan on two tasks of another kind.",
        ),
    ),
)


KINDS = (Hypothesis, Opinion, Design, ReviewProse, Summary)
WRONG = FIRST.model_copy(
    update={
        "expected_result": f"{FIRST.expected_result} Once merged, it needs 40 % fewer FLOPs at inference than LoRA.",
        "claims": (CLAIMS[0].model_copy(update={"reference": None}), CLAIMS[1]),
    }
)


class ScriptedAsker:
    """Answers by type and prompt. `asked` lists the names of the prompts; `papers` gives it something to quote."""

    def __init__(
        self, papers: Papers | None = None, more: Mapping[str, Callable[[Prompt], Artefact]] | None = None
    ) -> None:
        self.papers = papers or Papers()
        self.more = dict(more or {})
        self.asked: list[str] = []

    def ask(self, prompt, kind, problems=None):
        """As `asking.Asker.ask`; an answer with problems is an error at once."""
        self.asked.append(prompt.name)
        content = self.answer(prompt, kind)
        found = tuple(problems(content)) if problems else ()
        found = found and tuple(problems(content))  # some problems are said only once, see wellformed.MendOnce
        if found:
            raise ModelAnswerError(f"scripted answer to {prompt.name}: {'; '.join(found)}")
        start = first_messages(prompt, schema_of(kind))
        return Answer(content, Made(by="model", model=MODEL, prompt=digest(start)))

    def answer(self, prompt, kind):
        """The content for a prompt."""
        if kind.__name__ in self.more:
            return self.more[kind.__name__](prompt)
        if kind is Hypothesis:
            written = re.search(r"Write round (\d+) of the hypothesis", prompt.text)
            return refinement(int(written[1]) if written else 0)
        if kind is Opinion:
            return opinion(int(re.search(r"\(hypothesis of round (\d+)\)", prompt.text)[1]), self.papers)
        if kind is Design:
            return DESIGN
        if kind is ReviewProse:
            return PROSE
        if kind is Summary:
            return summary(prompt.text)
        raise AssertionError(f"the script has no answer of type {kind.__name__} (prompt {prompt.name})")


class ScriptedSpeaker:
    """The script as a `conversation.Speaker`. Its very first answer is wrong: a claim without a reference, and savings
    that cannot be; when it hears of it, it mends both."""

    def __init__(self, papers: Papers) -> None:
        self.script = ScriptedAsker(papers)

    def say(self, messages, wanted):
        """The next turn."""
        kind = next(kind for kind in KINDS if kind.__name__ == wanted.name)
        prompt = Prompt(wanted.prompt, messages[0].text, messages[1].text)
        content = self.script.answer(prompt, kind)
        if content is FIRST and len(messages) == 2:
            content = WRONG
        return Reply(content.model_dump_json(indent=1), MODEL)


def refinement(number: int) -> Hypothesis:
    """The hypothesis of a round; beyond the script, the last one with another sentence."""
    if number < len(ROUNDS):
        return ROUNDS[number]
    return THIRD.model_copy(update={"open_problems": f"{FIRST.open_problems} (Round {number}.)"})


def opinion(number: int, papers: Papers) -> Opinion:
    """The opinion on a round; it quotes the first paper that says anything."""
    marks = MARKS[min(number, len(MARKS) - 1)]
    reasons = ("a known signal in a new place", "cheap to try", "runs are short", "claims follow from the text")
    novelty, significance, feasibility, consistency = (
        Score(score=mark, reason=reason) for mark, reason in zip(marks, reasons, strict=True)
    )
    return Opinion(
        novelty=novelty,
        significance=significance,
        feasibility=feasibility,
        consistency=consistency,
        closest=closest(papers),
    )


def closest(papers: Papers) -> tuple[Closest, ...]:
    """The first paper with a statement of eight words, quoted."""
    for paper in papers.papers:
        for statement in (*paper.methodology, *paper.contributions):
            words = statement.text.split()
            if len(words) >= 8:
                quote = " ".join(words[:8])
                return (Closest(paper_id=paper.id, quote=quote, overlap="allocates rank too, by another score"),)
    return ()


def summary(text: str) -> Summary:
    """A summary of the paper in a prompt: its first line is the title, its first long sentence all that it says."""
    paper = text.split("<<<begin data ", 1)[1].split("\n", 1)[1].rsplit("\nend data ", 1)[0]
    title = next(line.strip("# ") for line in paper.splitlines() if line.strip())
    passage = next(line for line in paper.splitlines()[1:] if len(line.split()) >= 8)
    return Summary(title=title, contributions=(Said(text="It says this.", passage=" ".join(passage.split()[:12])),))
