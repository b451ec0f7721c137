"""Messages and media of the Qwen-VLs to token ids. Imports no torch."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from model.data.chat import Segment, render_chat
from model.data.errors import InputError
from model.data.schema import PLACEHOLDERS, TURN_END, TURN_START, reserved_word
from model.families.qwen_images import Grid

VISION_START, VISION_END, VISION_PAD = "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
# A text that holds one would forge a turn, an image or a video.
RESERVED = (TURN_START, TURN_END, VISION_START, VISION_END, VISION_PAD, IMAGE_PAD, VIDEO_PAD)
# Qwen's templates put the text right behind a medium; rows give its placeholder a line of its own.
_PLACEHOLDER = re.compile(f"({'|'.join(PLACEHOLDERS.values())})\n?")


class Shown(NamedTuple):
    """An image or video as the text shows it.

    Attributes:
        kind: "image" or "video".
        grid: its patches.
        tokens: its placeholders.
        interval: positions between two temporal patches; None where each is a block of its own.
        seconds: then the time of each, written before it.
    """

    kind: str
    grid: Grid
    tokens: int
    interval: float | None
    seconds: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        """The text of the medium, with one placeholder a block."""
        pad = IMAGE_PAD if self.kind == "image" else VIDEO_PAD
        block = VISION_START + pad + VISION_END
        return "".join(f"<{second:.1f} seconds>{block}" for second in self.seconds) or block


def render_qwen(
    messages: Sequence[dict[str, str]], system_prompt: str | None, *, generate: bool = False
) -> list[Segment]:
    """Render messages to segments; only the assistant's text and its ``<|im_end|>`` are trained.

    Raises:
        InputError: a message holds a reserved word.
    """
    for message in messages:
        if found := reserved_word(message["content"], RESERVED):
            raise InputError(f"a message holds the reserved word {found}")
    return render_chat(messages, system_prompt, generate=generate)


def text_order(segments: Sequence[Segment], kinds: Sequence[str]) -> list[int]:
    """Indices of the media in the order of their placeholders; ``kinds`` are those of the media as given.

    Raises:
        InputError: media and placeholders of a kind differ in number.
    """
    given = {kind: [index for index, other in enumerate(kinds) if other == kind] for kind in PLACEHOLDERS}
    names = {placeholder: kind for kind, placeholder in PLACEHOLDERS.items()}
    shown = [names[found] for segment in segments for found in _PLACEHOLDER.findall(segment.text)]
    for kind, placeholder in PLACEHOLDERS.items():
        if shown.count(kind) != len(given[kind]):
            raise InputError(f"{shown.count(kind)} {placeholder} placeholders for {len(given[kind])} {kind}s")
    each = {kind: iter(indices) for kind, indices in given.items()}
    return [next(each[kind]) for kind in shown]


def tokenize(tokenizer: Tokenizer, segments: Sequence[Segment], media: Sequence[Shown]) -> tuple[list[int], list[bool]]:
    """Token ids, and whether each carries loss.

    Args:
        tokenizer: has the placeholders as special tokens.
        segments: the rendered conversation.
        media: what its ``<image>`` and ``<video>`` show, in order; as many as there are placeholders.
    """
    items = iter(media)
    repeats = iter([m.tokens // max(1, len(m.seconds)) for m in media for _ in range(max(1, len(m.seconds)))])
    pads = {tokenizer.token_to_id(pad) for pad in (IMAGE_PAD, VIDEO_PAD)}
    input_ids: list[int] = []
    trained: list[bool] = []
    # Neighbours are tokenised together, as stock processors tokenise the whole prompt; a trained answer begins where
    # generation begins.
    for is_trained, group in groupby(segments, key=lambda segment: segment.trained):
        text = "".join(segment.text for segment in group)
        text = _PLACEHOLDER.sub(lambda _: next(items).text, text)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        # The placeholders are special tokens, so one stands for as many as its block has.
        counts = [next(repeats) if token in pads else 1 for token in ids]
        expanded = np.repeat(ids, counts).tolist()
        input_ids += expanded
        trained += [is_trained] * len(expanded)
    return input_ids, trained
