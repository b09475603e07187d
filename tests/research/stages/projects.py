"""Projects for tests of the stages: two papers, a topic, a number of scripted rounds."""

from research.stages.scripted import ScriptedAsker

from rankwise.research.artefacts import Paper, Papers, Statement
from rankwise.research.evaluate import evaluate
from rankwise.research.hypothesize import hypothesize
from rankwise.research.project import Made, Project, Settings
from rankwise.research.refine import refine

TOPIC = "Where should LoRA rank go?"
PAPERS = Papers(
    papers=(
        Paper(
            id="lora",
            title="Low-rank adaptation",
            methodology=(Statement(text="Every adapted matrix gets an update of the same rank."),),
        ),
        Paper(
            id="adalora",
            title="Adaptive budgets",
            methodology=(Statement(text="Triplets are scored by smoothed sensitivity times uncertainty."),),
        ),
    )
)


def new_project(folder, *, papers=PAPERS, rounds=2, style="minimal"):
    """A project with papers and no hypothesis."""
    project = Project(folder)
    project.write("project.json", Settings(topic=TOPIC, style=style, rounds=rounds), Made(by="hand"))
    project.write("papers.json", papers, Made(by="import"))
    return project


def project_with(folder, rounds, *, judged=True, **more):
    """A project with so many scripted rounds, evaluated or not."""
    project = new_project(folder, **more)
    asker = ScriptedAsker(PAPERS)
    for number in range(rounds):
        refine(project, asker) if number else hypothesize(project, asker)
        if judged:
            evaluate(project, number, asker)
    return project
