"""Which round is taken: the best one, not the last one."""

from pydantic import Field

from rankwise import __version__
from rankwise.errors import ConfigError, Finding
from rankwise.research.artefacts import Artefact
from rankwise.research.project import Made, Project, evaluation_file, hypothesis_file
from rankwise.research.rounds import Round, errors, read_rounds, total

CHOICE = "choice.json"


class Standing(Artefact):
    """How a round stands."""

    round: int = Field(ge=0)
    title: str = ""
    errors: int = Field(ge=0, description="errors that code found")
    total: int | None = Field(default=None, description="sum of four scores, 4 to 40; none: no model was asked")


class Choice(Artefact):
    """The round that is designed and run, and how all of them stand, best first."""

    round: int = Field(ge=0)
    why: str
    standings: tuple[Standing, ...]


def standings(rounds: tuple[Round, ...]) -> tuple[Standing, ...]:
    """The evaluated rounds, best first: fewer errors, then the higher sum of scores, then the earlier one."""
    found = [
        Standing(
            round=item.number,
            title=item.hypothesis.title,
            errors=errors(item.evaluation),
            total=total(item.evaluation),
        )
        for item in rounds
        if item.evaluation is not None
    ]
    return tuple(sorted(found, key=lambda standing: (standing.errors, -(standing.total or 0), standing.round)))


def choose(project: Project, *, again: bool = False) -> Choice:
    """Choose the round that is taken and write choice.json.

    Raises:
        ConfigError: there is no hypothesis, or one without an evaluation.
        OutputError: it is chosen already (and `again` is not said).
    """
    rounds = read_rounds(project)
    missing = [item.number for item in rounds if item.evaluation is None]
    if missing or not rounds:
        what = f"round {missing[0]} is not evaluated" if missing else "there is no hypothesis"
        step = f"`rankwise research evaluate {project.folder}`" if missing else "`rankwise research hypothesize`"
        raise ConfigError(str(project.folder), [Finding("", f"{what}; {step} comes first")])
    ordered = standings(rounds)
    choice = Choice(round=ordered[0].round, why=why(ordered), standings=ordered)
    names = [name(item.number) for item in rounds for name in (hypothesis_file, evaluation_file)]
    made = Made(by="code", inputs=project.inputs(*names), version=__version__)
    project.write(CHOICE, choice, made, again=again)
    return choice


def outdated(project: Project) -> bool:
    """Whether code chose among other rounds, or other evaluations, than there are now. A person's choice stands.

    Raises:
        ConfigError: a file is wrong.
    """
    rounds = read_rounds(project)
    known = project.read(CHOICE, Choice).standings
    return project.made(CHOICE).by == "code" and (len(rounds) != len(known) or standings(rounds) != known)


def why(ordered: tuple[Standing, ...]) -> str:
    """The reason in words, from the standings."""
    best = ordered[0]
    if len(ordered) == 1:
        return f"round {best.round} is the only one"
    second = ordered[1]
    if best.errors != second.errors:
        reason = f"code found {best.errors} error(s) in it, {second.errors} in round {second.round}"
    elif best.total != second.total:
        reason = f"as many errors ({best.errors}) as round {second.round}; scores: {_said(best)} to {_said(second)}"
    else:
        reason = f"errors ({best.errors}) and scores ({_said(best)}) are those of round {second.round}; it is earlier"
    return f"round {best.round}: {reason}"


def _said(standing: Standing) -> str:
    return "none (no model was asked)" if standing.total is None else f"{standing.total} of 40"
