"""What can be run, told to a language model: a proposal outside of it is one that no run here decides."""

from rankwise.experiments.schema import method_registry
from rankwise.research.datasets import known_tasks
from rankwise.research.project import Settings

LONGEST = 160
"""Characters of a setting's description."""


def told_means(settings: Settings, *, known_by: bool = False) -> str:
    """Methods with their settings, tasks, base models and time, for a prompt.

    `known_by` leaves all of it out: a recorded conversation is known again when there are more methods.
    """
    if known_by:
        return "(what can be run)"
    models = "`minilm`" if settings.base_model == "minilm" else f"`minilm` and `{settings.base_model}`"
    return (
        f"Methods, with their settings and defaults:\n\n{told_methods()}\n\n"
        f"Tasks: {', '.join(known_tasks())}.\n\n"
        f"Base models: {models}; any other by its name on the Hugging Face hub, on a machine that has it.\n\n"
        f"All runs together may take {settings.budget_minutes:g} minutes on this machine."
    )


def told_methods() -> str:
    """Every registered method, a line each, and a line for each of its own settings."""
    registry = method_registry()
    shared = {*registry["lora"].model_fields, "name"}
    lines = [f"Every method but `full` has the settings {', '.join(sorted(shared - {'name', 'budget'}))}."]
    for name in registry:
        lines.append(f"- `{name}`: {(registry[name].__doc__ or '').strip().partition(chr(10))[0]}")
        for field, info in registry[name].model_fields.items():
            if field not in shared:
                default = str(info.get_default(call_default_factory=True))[:40]
                lines.append(f"  - `{field}` ({default}): {_cut(info.description or '')}".rstrip(" :"))
    return "\n".join(lines)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rsplit(' ', 1)[0]} …"
