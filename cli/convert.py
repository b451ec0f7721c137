"""``fovea convert``: an InternVL model directory in the other layout."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Layout(StrEnum):
    """The two layouts that InternVL3.5 is published in."""

    huggingface = "huggingface"
    original = "original"


def convert(
    source: Annotated[Path, typer.Argument(help="Model directory of either layout.")],
    output: Annotated[Path, typer.Argument(help="Model directory to write; must not exist.")],
    to: Annotated[
        Layout | None, typer.Option(help="Layout to write; default: the one that SOURCE does not have.")
    ] = None,
) -> None:
    """Write an InternVL model in the Hugging Face layout (`internvl`) or the original one (`internvl_chat`).

    Every tensor keeps its bits, those of a Flash model's router and second projector too.

    Example: `fovea convert checkpoints/InternVL3_5-8B checkpoints/InternVL3_5-8B-HF`
    """
    from model.flash.conversion import convert as convert_directory
    from model.flash.conversion import layout_of

    found = layout_of(source)
    layout = to.value if to else ("original" if found == "huggingface" else "huggingface")
    convert_directory(source, output, layout)
    typer.echo(f"{output}: {source} in the {layout} layout (from {found})")


def mount(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(convert)
