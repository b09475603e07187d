"""`rankwise research status`: which stages are done, which no longer fit what they were made from, what comes next."""

from rankwise.experiments.shown import Summary
from rankwise.research.calls import CallLog
from rankwise.research.project import Project
from rankwise.research.rounds import read_settings
from rankwise.research.run import status_of
from rankwise.research.stages import Standing, standings

SYMBOLS = {"done": "✓", "stale": "!", "next": "→", "waiting": "·", "not needed": "–"}


def status(project: Project) -> Summary:
    """How a project stands, for people and as data.

    Raises:
        ConfigError: there is no project in the folder, or a file is wrong.
    """
    settings = read_settings(project)
    found = standings(project)
    spent = CallLog(project).spent()
    runs = status_of(project)
    lines = [f"{project.folder}: {settings.topic}", "", *(_line(one) for one in found), ""]
    if runs:
        lines.append(f"runs: {runs['completed']} of {runs['planned']} completed at profile {runs['profile']}")
    price = f", {spent.unpriced} of them at a price that is not known" if spent.unpriced else ""
    lines.append(
        f"language model: {spent.requests} requests, {spent.tokens:,} tokens, {spent.cost:.4f} US dollars{price}"
    )
    following = next((one for one in found if one.state == "next"), None)
    lines.append(f"next: {following.stage.command}" if following else "next: nothing, every stage is done")
    data = {
        "project": str(project.folder),
        "topic": settings.topic,
        "stages": [_data(one) for one in found],
        "runs": runs,
        "model": {"requests": spent.requests, "tokens": spent.tokens, "cost": spent.cost, "unpriced": spent.unpriced},
        "next": following.stage.command if following else None,
    }
    return Summary("\n".join(lines), data)


def _line(one: Standing) -> str:
    why = f"  {one.why}" if one.why else ""
    return f"  {SYMBOLS[one.state]} {one.stage.name:<16}{one.stage.file:<24}{one.state:<11}{one.by}{why}".rstrip()


def _data(one: Standing) -> dict[str, str]:
    return {"stage": one.stage.name, "file": one.stage.file, "state": one.state, "by": one.by, "why": one.why}
