"""``fovea data``: commands about datasets."""

import typer

from cli.data_check import check
from cli.data_diff import diff
from cli.data_export import export
from cli.data_look import look

data = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Look at datasets and carry them to other tools.\n\nExample: `fovea data look out/line/curate/questions`",
)
for command in (look, diff, check, export):
    data.command()(command)


def mount(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(data, name="data")
