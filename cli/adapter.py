"""``fovea adapter``: fold a low-rank adapter into its base, or take it out again."""

from pathlib import Path
from typing import Annotated

import typer

application = typer.Typer(
    no_args_is_help=True,
    help="Fold a low-rank adapter into its base model, or take it out again.\n\n"
    "Example: `fovea adapter unmerge out/line/sft/model base-again`",
)
OutputArgument = Annotated[Path, typer.Argument(help="Model directory to write; must not exist.")]


@application.command()
def merge(
    base: Annotated[Path, typer.Argument(help="Model directory that the adapter was trained on.")],
    adapter: Annotated[Path, typer.Argument(help="Adapter directory.")],
    output: OutputArgument,
) -> None:
    """Write the model of a base and its adapter.

    Example: `fovea adapter merge out/line/pretrain/model out/line/sft/model/adapter merged`
    """
    from components.adapter import merge_directories

    merge_directories(base, adapter, output)
    print(f"{output}: {base} with {adapter} folded in")


@application.command()
def unmerge(
    model: Annotated[Path, typer.Argument(help="Model directory with an adapter folder in it.")],
    output: OutputArgument,
) -> None:
    """Write the base of a merged model, as near as rounding allows.

    Example: `fovea adapter unmerge out/line/sft/model base-again`
    """
    from components.adapter import unmerge_directory

    unmerge_directory(model, output)
    print(f"{output}: {model} without its adapter")


def mount(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(application, name="adapter")
