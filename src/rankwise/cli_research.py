"""The command group `research`: from prior papers to a verdict. Its commands live in `cli_research_*`."""

import typer

from rankwise import cli_research_ask, cli_research_check, cli_research_papers, cli_research_run

app = typer.Typer(no_args_is_help=True, help="From prior papers to a verdict: a model proposes, code and runs decide.")
for part in (cli_research_papers, cli_research_ask, cli_research_check, cli_research_run):
    part.add_to(app)
