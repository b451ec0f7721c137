"""``fovea chat``: ask a model directory, the served model, or another endpoint.

Imports of models and servers stay inside the functions: ``fovea --help`` must not wait for them.
"""

import mimetypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from model.data.errors import InputError

if TYPE_CHECKING:
    from cli.conversation import Answerer, Conversation, Manner

_MAX_TOKENS, _MAX_TOKENS_THINKING = 256, 2048


class Words(NamedTuple):
    """What the words of the command line are."""

    model: Path | None
    images: list[Path]
    question: str | None


def chat(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [IMAGE]... [QUESTION]",
            help="A model directory, if any; images, if any; the question last. Without a question, they are read "
            "line by line.",
        ),
    ] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", help="An image; once for each.")] = None,
    name: Annotated[str, typer.Option(help="Name of the deployment, among those on this machine.")] = "fovea",
    url: Annotated[str | None, typer.Option(help="Base URL of another endpoint, up to and without /v1.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help=f"Longest answer; by default 256, {_MAX_TOKENS_THINKING} with --think.")
    ] = None,
    think: Annotated[bool, typer.Option("--think", help="Ask for thoughts first, with the published prompt.")] = False,
    best_of: Annotated[int, typer.Option(min=1, max=256, help="Sample this many answers; a critic chooses.")] = 1,
    critic: Annotated[Path | None, typer.Option(help="Model directory of the critic (docs/thinking.md).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is sampled.")] = 0,
) -> None:
    """Ask a model: a directory, what `fovea serve` serves, another endpoint, or else the registered champion.

    Examples:

    - `fovea chat digits.png "How many digits are in the image?"`

    - `fovea chat out/line/sft/model --image digits.png "Which digits?"`

    - `fovea chat my-model --think --best-of 8 --critic my-critic`
    """
    from cli.conversation import Conversation, Manner, read_picture

    model, images, question = read_words(words or [])
    if best_of > 1 and critic is None:
        raise InputError(f"--best-of {best_of}: somebody has to choose; name a critic: --critic DIR")
    if model is not None and url is not None:
        raise InputError("--url: asks an endpoint; leave the model directory out")
    conversation = Conversation([read_picture(path) for path in [*images, *(image or [])]])
    manner = Manner(think, best_of, max_tokens or (_MAX_TOKENS_THINKING if think else _MAX_TOKENS), seed)
    answerer = _answerer(model, url, name, best_of, critic)
    if question is None:
        _converse(answerer, conversation, manner)
        return
    answerer.answer(conversation, question, manner)
    print()


def read_words(words: list[str]) -> Words:
    """A directory in front is the model. The last word is the question, unless it is an image."""
    rest = list(words)
    model = Path(rest.pop(0)) if rest and _is_directory(rest[0]) else None
    question = rest.pop() if rest and not _is_image(rest[-1]) else None
    return Words(model, [Path(word) for word in rest], question)


def _is_directory(word: str) -> bool:
    try:
        return Path(word).is_dir()
    except OSError:  # longer than any name
        return False


def _is_image(word: str) -> bool:
    """By its name, one word that ends as images do."""
    kind = mimetypes.guess_type(word)[0] or ""
    return kind.startswith("image/")


def _answerer(model: Path | None, url: str | None, name: str, candidates: int, critic: Path | None) -> "Answerer":
    from cli.chat_endpoint import Endpoint

    if url is not None:
        return Endpoint(url, None, greedy=False, candidates=candidates, critic=critic)
    if model is None:
        from serving import launch

        state = launch.read_state(Path(os.environ.get("FOVEA_OUT") or "out") / "serve", name)
        if state is not None and state.ended() is None:
            return Endpoint(state.endpoint, state.model, greedy=True, candidates=candidates, critic=critic)
        model = _champion(name)
    from cli.chat_model import LocalModel

    return LocalModel(model, critic, candidates)


def _champion(name: str) -> Path:
    """Where the registered champion lies."""
    from cli.registry import registry_uri

    uri, champion = registry_uri(), None
    if uri is not None:
        from components.tracking import MlflowRegistry

        champion = MlflowRegistry(uri).by_alias(name, "champion")
    if champion is None:
        raise InputError(f"{name} is not being served; start it with `fovea serve`, or name a model directory")
    from serving.deployment import local_model

    directory = local_model(champion.storage_uri)
    print(f"fovea: {name} is not being served; asking its champion, version {champion.version}", file=sys.stderr)
    return directory


def _converse(answerer: "Answerer", conversation: "Conversation", manner: "Manner") -> None:
    """Question after question until the input ends; one that cannot be answered is said so and forgotten."""
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            print()
            return
        if not question:
            continue
        try:
            conversation.answered(question, answerer.answer(conversation, question, manner))
        except InputError as error:
            print(f"fovea: error: {error}", file=sys.stderr)
            continue
        print()
