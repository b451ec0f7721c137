"""Text, images and videos to samples, for Qwen2-VL, Qwen2.5-VL and Qwen3-VL. Imports neither torch nor transformers.

``Sample.media`` holds images and videos together, in the order of their placeholders:

- ``patches``: float32 [P, 3 x temporal x patch x patch], normalised; what transformers calls ``pixel_values``.
- ``grids``: int64 [I, 3], one row for an image or a whole video: patches along time, height and width.

A text-only sample has no rows in either. ``Sample.units`` counts tokens (merged patches), ``Sample.positions`` is int64
[3, T]. The id of a token tells whether it shows an image or a video. Generation takes
``conversation(messages, media, generate=True)`` and ``qwen_positions.position_delta(sample.positions)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from model.data.chat import Segment
from model.data.errors import InputError
from model.data.schema import TURN_END, Row
from model.data.video import FrameSampling, Video, VideoShape, row_media, row_video_shape
from model.families.interface import Sample, Size
from model.families.qwen_chat import IMAGE_PAD, VIDEO_PAD, Shown, render_qwen, text_order, tokenize
from model.families.qwen_images import Patching, PixelRange, VideoBudget, smart_resize, to_patches
from model.families.qwen_positions import mrope_positions
from model.flash.images import image_size, reencode_jpeg


@dataclass(frozen=True)
class Generation:
    """What differs between Qwen2-VL, Qwen2.5-VL and Qwen3-VL before the network.

    Attributes:
        system_prompt: opens a conversation that has no system turn; None for none.
        time: how a video tells time: its temporal patches are counted (``index``), stand at their seconds
            (``seconds``), or follow their time as text (``text``).
        tokens_per_second: positions in a second, for ``seconds``.
    """

    system_prompt: str | None
    time: Literal["index", "seconds", "text"]
    tokens_per_second: float = 1.0


@dataclass(frozen=True)
class QwenLimits:
    """Sizes of images and videos, and which frames of a video are taken."""

    image: PixelRange
    video: VideoBudget
    sampling: FrameSampling


class ShownFeatures(Protocol):
    """Visual features that say how the text shows them."""

    shown: Shown


@dataclass(frozen=True)
class QwenProcessor:
    """Tokenizer, media preparation and chat rendering of one model directory.

    Every special id is looked up in the tokenizer.

    Attributes:
        files: the directory's other text files (preprocessing, tokenizer and generation settings, chat template) by
            name, which go unchanged with the model.
    """

    tokenizer: Tokenizer
    generation: Generation
    patching: Patching
    limits: QwenLimits
    files: dict[str, str]

    @property
    def eos_token_id(self) -> int:
        return self.special_id(TURN_END)

    @property
    def image_token_id(self) -> int:
        return self.special_id(IMAGE_PAD)

    @property
    def video_token_id(self) -> int:
        return self.special_id(VIDEO_PAD)

    def special_id(self, token: str) -> int:
        """Id of a special token.

        Raises:
            InputError: the tokenizer does not have it.
        """
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise InputError(f"tokenizer has no token {token}")
        return found

    def conversation(
        self,
        messages: Sequence[dict[str, str]],
        media: Sequence[Image.Image | Video],
        *,
        generate: bool = False,
        row_id: str = "",
    ) -> Sample:
        """Render, prepare and tokenise one conversation; with ``generate`` it ends with an open assistant turn.

        ``media`` are RGB images and videos, those of each kind in the order of their placeholders.

        Raises:
            InputError: placeholders and media differ in number, a message holds a reserved word, or a medium's aspect
                ratio is above 200.
        """
        segments = render_qwen(messages, self.generation.system_prompt, generate=generate)
        prepared = [self.prepare(item) for item in media]
        prepared = [prepared[index] for index in text_order(segments, [shown.kind for shown, _ in prepared])]
        sample = self._lay_out(segments, [shown for shown, _ in prepared], row_id)
        sample.media["patches"] = np.concatenate([sample.media["patches"], *(patches for _, patches in prepared)])
        return sample

    def _lay_out(self, segments: Sequence[Segment], shown: Sequence[Shown], row_id: str) -> Sample:
        """A sample whose patches are left out."""
        input_ids, trained = tokenize(self.tokenizer, segments, shown)
        grids = np.array([item.grid for item in shown], np.int64).reshape(-1, 3)
        positions = mrope_positions(
            input_ids,
            grids,
            [item.interval for item in shown],
            visual_ids=(self.image_token_id, self.video_token_id),
            merge=self.patching.merge,
        )
        media = {"patches": np.zeros((0, self.patching.width), np.float32), "grids": grids}
        return Sample(row_id, input_ids, trained, media, sum(item.tokens for item in shown), positions)

    def question(self, row: Row) -> Sample:
        """A row without its answer, an open assistant turn at its end.

        Raises:
            InputError: names the row whose medium or messages cannot be used.
        """
        media = row_media(row, self.limits.sampling)
        try:
            return self.conversation(row["messages"][:-1], media, generate=True, row_id=row["id"])
        except InputError as error:
            raise InputError(f"row {row['id']}: {error}") from error

    def prompt(self, messages: Sequence[dict[str, str]], features: Sequence[ShownFeatures]) -> Sample:
        """Messages whose media the vision half has seen, an open assistant turn at their end; without patches.

        ``features`` are what the network's ``encode_batch`` gave, in the order of their placeholders.

        Raises:
            InputError: placeholders and features differ in number or kind, or a message holds a reserved word.
        """
        segments = render_qwen(messages, self.generation.system_prompt, generate=True)
        shown = [item.shown for item in features]
        if text_order(segments, [item.kind for item in shown]) != list(range(len(shown))):
            raise InputError("features do not stand in the order of their placeholders")
        return self._lay_out(segments, shown, "")

    def sample(self, row: Row, *, jpeg_quality: int | None = None) -> Sample:
        """Decode, prepare and tokenise a row, its images re-encoded as JPEG at ``jpeg_quality`` first.

        Raises:
            InputError: names the row whose medium or messages cannot be used.
        """
        media = row_media(row, self.limits.sampling)
        if jpeg_quality is not None:
            media = [reencode_jpeg(item, jpeg_quality) if isinstance(item, Image.Image) else item for item in media]
        try:
            return self.conversation(row["messages"], media, row_id=row["id"])
        except InputError as error:
            raise InputError(f"row {row['id']}: {error}") from error

    def measure(self, row: Row) -> Size:
        """Tokens and merged patches of ``sample(row)``; an image that states its width and height is not opened.

        Raises:
            InputError: names the row whose medium or messages cannot be used.
        """
        shapes = [_shape(row, number, self.limits.sampling) for number in range(len(row["media"]))]
        try:
            segments = render_qwen(row["messages"], self.generation.system_prompt)
            shown = [self._measured(shape) for shape in shapes]
            shown = [shown[index] for index in text_order(segments, [item.kind for item in shown])]
            input_ids, _ = tokenize(self.tokenizer, segments, shown)
        except InputError as error:
            raise InputError(f"row {row['id']}: {error}") from error
        return Size(len(input_ids), sum(item.tokens for item in shown))

    def blank_media(self) -> dict[str, np.ndarray]:
        """One grey token: merge x merge patches of zeros."""
        merge = self.patching.merge
        patches = np.zeros((merge**2, self.patching.width), np.float32)
        return {"patches": patches, "grids": np.array([[1, merge, merge]], np.int64)}

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def prepare(self, item: Image.Image | Video) -> tuple[Shown, np.ndarray]:
        """What the text shows of an image or video, and its patches [P, C x t x p x p].

        Raises:
            InputError: its aspect ratio is above 200, or it has no frames.
        """
        if isinstance(item, Image.Image):
            height, width = smart_resize(item.height, item.width, self.patching.factor, self.limits.image)
            return self._image(height, width), to_patches([item], height, width, self.patching)
        if not item.frames:
            raise InputError("video has no frames")
        first = item.frames[0]
        height, width = self.limits.video.size(len(item.frames), first.height, first.width, self.patching)
        shown = self._video(item.timestamps, height, width, item.fps)
        return shown, to_patches(item.frames, height, width, self.patching)

    def _measured(self, shape: VideoShape | tuple[int, int]) -> Shown:
        if not isinstance(shape, VideoShape):
            return self._image(*smart_resize(shape[1], shape[0], self.patching.factor, self.limits.image))
        height, width = self.limits.video.size(shape.frames, shape.height, shape.width, self.patching)
        return self._video(shape.timestamps, height, width, 1.0)  # the rate moves positions, not sizes

    def _image(self, height: int, width: int) -> Shown:
        grid = self.patching.grid(1, height, width)
        return Shown("image", grid, self.patching.tokens(grid), 1.0)

    def _video(self, timestamps: Sequence[float], height: int, width: int, fps: float) -> Shown:
        """A video as its generation shows it; ``fps`` is the rate of its sampled frames."""
        grid = self.patching.grid(len(timestamps), height, width)
        tokens, step = self.patching.tokens(grid), self.patching.temporal
        if self.generation.time == "seconds":
            return Shown("video", grid, tokens, self.generation.tokens_per_second * step / fps)
        if self.generation.time == "index":
            return Shown("video", grid, tokens, 1.0)
        # A temporal patch stands at the middle of its first and last frame.
        last = len(timestamps) - 1
        middles = [(timestamps[i] + timestamps[min(i + step - 1, last)]) / 2 for i in range(0, last + 1, step)]
        return Shown("video", grid, tokens, None, tuple(middles))


def _shape(row: Row, number: int, sampling: FrameSampling) -> VideoShape | tuple[int, int]:
    """Shape of a video, or width and height of an image, upright or not: as many tokens show it either way."""
    medium = row["media"][number]
    if medium["kind"] == "video":
        return row_video_shape(row, number, sampling)
    if medium["width"] and medium["height"]:
        return medium["width"], medium["height"]
    try:
        if medium["bytes"] is None:
            raise InputError("only images whose bytes are in the row can be read")
        return image_size(medium["bytes"])
    except InputError as error:
        raise InputError(f"row {row['id']}: media[{number}]: {error}") from error
