"""What a chat in the terminal is about: its images, its turns, and how answers are asked for. Imports no torch."""

import mimetypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from model.data.errors import InputError
from model.data.schema import IMAGE_PLACEHOLDER, Message, Row, check_row, image_media, scorer
from model.data.thinking import thinking_row

_MAX_IMAGE_BYTES = 16 << 20


@dataclass(frozen=True)
class Manner:
    """How answers are asked for.

    Attributes:
        think: with the published thinking prompt, sampled as published.
        candidates: answers, of which a critic chooses one.
        max_tokens: longest answer.
        seed: of the sampling.
    """

    think: bool
    candidates: int
    max_tokens: int
    seed: int

    @property
    def sampled(self) -> bool:
        """Whether answers are drawn; else the likeliest token is taken every time."""
        return self.think or self.candidates > 1


@dataclass(frozen=True)
class Picture:
    """An image file as it is on the disk."""

    path: Path
    data: bytes

    @property
    def media_type(self) -> str:
        """Of its name; PNG where that says nothing."""
        return mimetypes.guess_type(self.path.name)[0] or "image/png"


@dataclass
class Conversation:
    """Images, shown with the first question, and the turns so far."""

    pictures: list[Picture]
    turns: list[Message] = field(default_factory=list)

    def asking(self, question: str) -> list[Message]:
        """The turns with one more question."""
        return [*self.turns, {"role": "user", "content": question}]

    def answered(self, question: str, answer: str) -> None:
        """Go on after an answer."""
        self.turns = [*self.asking(question), {"role": "assistant", "content": answer}]

    def row(self, question: str, *, think: bool = False, alone: bool = False) -> Row:
        """The conversation as a dataset row whose last answer is wanted.

        Args:
            question: the next one.
            think: with the thinking prompt.
            alone: the images and this question only.

        Raises:
            InputError: an image cannot be read, or a text holds a reserved word; names it.
        """
        asked = [{"role": "user", "content": question}] if alone else self.asking(question)
        first = {"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n" * len(self.pictures) + asked[0]["content"]}
        wanted: Message = {"role": "assistant", "content": "?"}
        row: Row = {
            "id": f"question {len(self.turns) // 2 + 1}",
            "source": "chat",
            "license": "none",
            "media": [_medium(picture) for picture in self.pictures],
            "messages": [first, *asked[1:], wanted],
            "task": "chat",
            "answers": ["?"],
            "scorer": scorer("exact"),
        }
        if reason := check_row(row):
            raise InputError(reason)
        return thinking_row(row) if think else row


class Answerer(Protocol):
    """Whoever is asked."""

    def answer(self, conversation: Conversation, question: str, manner: Manner) -> str:
        """The answer, which is also printed, its line not ended.

        Raises:
            InputError: the question cannot be answered; says why.
        """


def read_picture(path: Path) -> Picture:
    """Read an image file, without opening the image.

    Raises:
        InputError: it is missing, too large, or by its name no image.
    """
    try:
        if path.stat().st_size > _MAX_IMAGE_BYTES:
            raise InputError(f"{path}: larger than {_MAX_IMAGE_BYTES} bytes")
        picture = Picture(path, path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not picture.media_type.startswith("image/"):
        raise InputError(f"{path}: not an image")
    return picture


def _medium(picture: Picture) -> dict:
    import io

    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(picture.data)) as image:
            return image_media(picture.data, image_format=image.format or "", width=image.width, height=image.height)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{picture.path}: {error}") from None
