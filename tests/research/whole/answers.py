"""What a sensible model answers to the prompts for a design and for a review's prose, and two prior papers."""

import json
import re

from rankwise.research.artefacts import Claim, Dataset, Design, DesignArm, Search
from rankwise.research.review_types import ProposedComment, ProposedResponse, ReviewProse

PAPERS = [
    {
        "Title": "Ranks for some, not for all",
        "Main Contributions": "Shows on three small tasks that upper blocks use more of an update than lower ones.",
        "Methodology": "Trains one low-rank update per matrix, then measures how the loss rises when each is left out.",
        "Experimental Setup": "Two encoders of six blocks, three classification tasks, five seeds each.",
        "Limitations": "Only encoders, and only after training has ended.",
        "Future Research Directions": "Finding out during training, without a second run.",
        "Experiment Code": None,
        "Experiment Result": None,
    },
    {
        "Title": "Gradients as a budget signal",
        "Main Contributions": "Uses norms of gradients to decide which matrices are worth more parameters.",
        "Methodology": "Keeps a running mean of each matrix's gradient norm and gives parameters in proportion to it.",
        "Experimental Setup": "Image classifiers, one seed.",
        "Limitations": "No control with parameters given at random.",
        "Future Research Directions": "Language models, and a comparison with random budgets.",
        "Experiment Code": None,
        "Experiment Result": None,
    },
]


def write_papers(path):
    """A file of prior papers as records have them: objects one after the other."""
    path.write_text("".join(json.dumps(paper, indent=1) for paper in PAPERS), encoding="utf-8")
    return path


def design(prompt):
    """The design of the scripted hypothesis; its claims as far as the prompt has them."""
    claims = [
        Claim(id="C1", text="GLoRA is no worse.", kind="non-inferiority", arm="glora", reference="lora", margin=0.01),
        Claim(id="C2", text="As good as AdaLoRA.", kind="equivalence", arm="glora", reference="adalora", margin=0.02),
        Claim(id="C3", text="Better than chance.", kind="superiority", arm="glora", reference="random", expected=0.01),
        Claim(
            id="C4",
            text="No more parameters than LoRA.",
            kind="bound",
            arm="glora",
            reference="lora",
            quantity="parameters",
            metric="parameters",
            at_most=1.0,
        ),
    ]
    return Design(
        name="gradient-ranks",
        question="Do ranks by gradient norms beat uniform and random ranks at the same number of parameters?",
        model="minilm",
        arms=(
            DesignArm(name="glora", role="proposed", method={"name": "glora"}, said="GLoRA"),
            DesignArm(name="adalora", role="comparative", method={"name": "adalora"}, said="AdaLoRA"),
            DesignArm(name="random", role="control", method={"name": "random"}, said="random allocation"),
        ),
        datasets=(Dataset(task="docstrings", said="docstrings"),),
        metrics=("accuracy",),
        budgets=("r=4",),
        seeds=3,
        training={"max_steps": 60, "batch_size": 8, "learning_rate": 0.003},
        search=(Search(path="training.learning_rate", kind="categorical", choices=(0.001, 0.003)),),
        claims=tuple(claim for claim in claims if claim.id != "C4" or '"C4"' in prompt.text),
    )


def prose(prompt):
    """Sentences, one more comment, and a response that cites the runs of C4."""
    runs = re.search(r"C4 is supported:.*?Runs: ([^\n]+?)\.$", prompt.text, re.MULTILINE)
    cited = tuple(runs[1].split(", ")) if runs else ()
    answers = [ProposedResponse(comment="M-C4", reply="The counted parameters are equal.", runs=cited)] if cited else []
    return ReviewProse(
        summary="A cheap signal for where rank goes, tried on short runs.",
        significance="It would save the bookkeeping that scores for every triplet take.",
        carries="A running mean of gradient norms, turned into ranks once.",
        between_lines=("The same signal could decide which matrices get no adapter at all.",),
        comments=(
            ProposedComment(severity="minor", about="C1", objection="One task only.", wants="another task, same plan"),
        ),
        responses=tuple(answers),
    )


MORE = {"Design": design, "ReviewProse": prose}
