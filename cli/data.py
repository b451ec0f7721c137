"""``fovea data``: commands about datasets."""

import typer

from cli.data_export import export

data = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Look at datasets and carry them to other tools.\n\nExample: `fovea data export out/line/curate/questions q`",
)
data.command()(export)


def mount(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(data, name="data")
