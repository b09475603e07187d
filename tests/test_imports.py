"""Imports point one way, and what is kept to one file stays there."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import rankwise

ROOT = Path(rankwise.__file__).parent
LEVELS = {
    "errors": 0,
    "registry": 0,
    "hub": 0,
    "interrupts": 0,
    "__init__": 0,
    "allocation": 1,
    "engine": 1,
    "adapters": 2,
    "tasks": 3,
    "costs": 3,
    "training": 4,
    "experiments": 5,
    "research": 6,
    "cli_options": 7,
    "cli_adapters": 7,
    "cli_model_options": 7,
    "cli_report": 7,
    "cli_research": 7,
    "cli_research_ask": 7,
    "cli_research_check": 7,
    "cli_research_papers": 7,
    "cli_research_run": 7,
    "cli_scale": 7,
    "cli_sweep": 7,
    "cli": 7,
    "__main__": 8,
}
STRANGERS = {("tasks", "adapters"), ("adapters", "tasks"), ("tasks", "costs"), ("costs", "tasks")}
FILES = sorted(ROOT.rglob("*.py"))


def part(module: str) -> str:
    """`rankwise.tasks.base` -> `tasks`."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


def module_of(path: Path) -> str:
    pieces = ["rankwise", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(pieces[:-1] if pieces[-1] == "__init__" and len(pieces) > 2 else pieces)


MODULES = {module_of(path) for path in FILES} | {"rankwise"}


@cache
def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES
            found |= submodules
            if len(submodules) < len(node.names):  # something else than submodules: the module itself is used
                found.add(node.module)
    return found


def own(path: Path) -> set[str]:
    """The project's modules that a file imports (names inside them left out)."""
    return {name for name in imported(path) if name in MODULES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    here = part(module_of(path))
    for name in own(path):
        there = part(name)
        assert LEVELS[there] <= LEVELS[here], f"{path.name} ({here}) imports {name} ({there})"
        assert (here, there) not in STRANGERS, f"{here} and {there} do not know each other"


def test_no_import_cycles():
    graph = {module_of(path): own(path) - {"rankwise", module_of(path)} for path in FILES}
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if state.get(name) == 2 or name not in graph:
            return
        assert state.get(name) != 1, f"cycle: {' -> '.join((*trail, name))}"
        state[name] = 1
        for other in graph[name]:
            visit(other, (*trail, name))
        state[name] = 2

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("hydra", {"experiments/config.py"}),
        ("omegaconf", {"experiments/config.py"}),
        (
            "sqlite3",
            {
                "experiments/store.py",
                "experiments/database.py",
                "experiments/migrations.py",
                "experiments/store_reader.py",
                "experiments/engines/queue_sqlite.py",
            },
        ),
        ("psycopg", {"experiments/engines/queue_postgres.py"}),
        ("ray", {"experiments/engines/ray.py"}),
        ("submitit", {"experiments/engines/slurm.py"}),
        (
            "typer",
            {
                "cli.py",
                "cli_adapters.py",
                "cli_model_options.py",
                "cli_options.py",
                "cli_report.py",
                "cli_research.py",
                "cli_research_ask.py",
                "cli_research_check.py",
                "cli_research_papers.py",
                "cli_research_run.py",
                "cli_scale.py",
                "cli_sweep.py",
            },
        ),
        ("pydantic_ai", {"research/llm.py", "research/llm_wire.py"}),
        ("openai", {"research/llm_wire.py"}),
        ("httpx2", {"research/llm_wire.py", "research/papers_online.py"}),
        ("pypdf", {"research/papers_files.py"}),
        ("starlette", {"experiments/dashboard.py"}),
        ("uvicorn", {"experiments/dashboard_commands.py"}),
        ("jinja2", {"experiments/html/page.py"}),
        ("pickle", set()),
        ("socket", set()),
        ("requests", set()),
    ],
)
def test_some_packages_stay_in_their_place(package, allowed):
    users = {p.relative_to(ROOT).as_posix() for p in FILES if any(n.split(".")[0] == package for n in imported(p))}
    assert users <= allowed


def test_no_eval_or_exec_or_unsafe_load():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                plain = isinstance(node.func, ast.Name)
                assert not (plain and called in {"eval", "exec", "__import__"}), f"{path}:{node.lineno}"
                assert called not in {"unsafe_load", "full_load"}, f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "module",
    [
        "rankwise.cli",
        "rankwise.experiments.report",
        "rankwise.experiments.schema",
        "rankwise.experiments.html.writing",
        "rankwise.experiments.dashboard",
        "rankwise.research.page",
        "rankwise.research.whole_commands",
    ],
)
def test_these_import_no_torch(module):
    """Help is fast, and a report can be rebuilt without torch."""
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'transformers', 'peft', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_are_short():
    long = {p.relative_to(ROOT).as_posix(): n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    assert not long
