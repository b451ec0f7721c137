"""``fovea look``: an image as a Flash model sees it, drawn."""

import errno
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.data.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

_QUESTION = "What is in the image?"


def look(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model directory; default: the last run's Flash model.")
    ] = None,
    question: Annotated[str, typer.Option("--question", "-q", help="What to ask about the image.")] = _QUESTION,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="PNG to write; default: out/look/NAME.png.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Show every tile in full, whatever the router says.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
) -> None:
    """Draw an image as a Flash model sees it: which tiles it keeps and which it compresses, and what it answers.

    Examples: `fovea look page.png -q "What does the last line say?"`, `fovea look page.png --model my-model --full`
    """
    from components.settings import Settings

    settings = Settings.from_environment()
    directory = model or settings.out / "line" / "route" / "model"
    if model is None and not directory.is_dir():
        raise InputError(f"{directory}: no Flash model has been trained here yet; name a model directory with --model")
    target = out or settings.out / "look" / f"{image.stem}.png"
    try:
        fit = target.suffix.lower() == ".png" and not target.is_dir()
    except OSError as error:  # the name is too long to look up
        raise InputError(f"{target}: {error.strerror}") from None
    if not fit:
        raise InputError(f"{target}: name a .png file to write")
    try:
        data = image.read_bytes()
    except OSError as error:
        raise InputError(f"{image}: {error.strerror}") from None
    answer, picture, tokens = _see(directory, data, image, question, full=full, max_tokens=max_tokens)
    _write(target, picture)
    print(f"{answer}\n{target}: {tokens}")


def _see(
    directory: Path, data: bytes, name: Path, question: str, *, full: bool, max_tokens: int
) -> tuple[str, "Image.Image", str]:
    """The answer, the picture, and the visual tokens in words."""
    from model.flash.images import read_image

    try:
        image = read_image(data)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    from model.families.generation import Request, generate
    from model.flash.checkpoint import load_model, load_processor
    from model.flash.conversion import layout_of
    from model.flash.encoding import look as see
    from model.flash.picture import draw_answer, share

    if directory.is_dir():
        layout_of(directory)  # only an InternVL has tiles
    network, processor = load_model(directory, full_resolution=full), load_processor(directory)
    messages = [{"role": "user", "content": f"<image>\n{question}"}]
    features = [found.features for found in network.encode([image])]
    answer = generate(network, processor, [Request(messages, features)], max_tokens)[0].text
    shown = see(network, [image])
    return answer, draw_answer(shown, question, answer), share(shown)


def _write(target: Path, picture: "Image.Image") -> None:
    from model.data.artifact import write_atomic

    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, stream.getvalue())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # a full disk is nobody's mistake, and has a line of its own
        raise InputError(f"{target}: {error.strerror}") from None


def mount(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(look)
