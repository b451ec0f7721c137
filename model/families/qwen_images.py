"""Images and video frames to rows of patches, for Qwen2-VL, Qwen2.5-VL and Qwen3-VL. Imports no torch.

A medium is resized to sides divisible by ``factor`` (a merged patch), within a range of pixels, and cut into patches.
The rules are those of transformers' image and video processors. Shape suffixes: F frames, P patches, and per patch
C x t x p x p numbers (channel, frame of the temporal patch, row, column).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from model.data.errors import InputError

MAX_ASPECT_RATIO = 200
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Grid(NamedTuple):
    """Patches of a medium along time, height and width."""

    time: int
    height: int
    width: int


class PixelRange(NamedTuple):
    """Bounds of the pixels of a resized medium."""

    least: int
    most: int


@dataclass(frozen=True)
class Patching:
    """How frames are cut.

    Attributes:
        patch: side of a patch in pixels.
        merge: merge x merge neighbouring patches become one token.
        temporal: frames in a patch.
        mean, std: of the channels red, green and blue in [0, 1]; what is cut is (pixel / 255 - mean) / std.
    """

    patch: int = 14
    merge: int = 2
    temporal: int = 2
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @property
    def factor(self) -> int:
        """Side of a token in pixels; resized sides are multiples of it."""
        return self.patch * self.merge

    @property
    def width(self) -> int:
        """Numbers in a patch."""
        return 3 * self.temporal * self.patch**2

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Grid of ``frames`` resized frames; an incomplete last temporal patch counts."""
        return Grid(-(-frames // self.temporal), height // self.patch, width // self.patch)

    def tokens(self, grid: Grid) -> int:
        """Tokens of a grid."""
        return math.prod(grid) // self.merge**2


@dataclass(frozen=True)
class VideoBudget:
    """How large the frames of a video may be.

    Attributes:
        pixels: range of pixels of one frame (Qwen2-VL, Qwen2.5-VL), or of all frames together (Qwen3-VL).
        together: ``pixels`` is for all frames together.
        max_tokens: None, or the bound of ``cap_pixels_per_frame``: tokens of one frame when ``together``; else
            tokens of the context, of which a video takes at most nine tenths.
    """

    pixels: PixelRange
    together: bool
    max_tokens: int | None = None

    def size(self, frames: int, height: int, width: int, patching: Patching) -> tuple[int, int]:
        """Height and width of the resized frames.

        Raises:
            InputError: the aspect ratio is above 200.
        """
        least, most = self.pixels
        floor = int(least * 1.05)
        area = patching.factor**2
        if self.together:
            if self.max_tokens is not None:
                most = frames * max(min(self.max_tokens * area, most // frames), floor)
            return resize_clip(frames, height, width, patching, PixelRange(least, most))
        if self.max_tokens is not None:
            share = int(self.max_tokens * area * 0.9) * patching.temporal // frames
            most = max(min(most, share), floor)
        return smart_resize(height, width, patching.factor, PixelRange(least, most))


def smart_resize(height: int, width: int, factor: int, pixels: PixelRange) -> tuple[int, int]:
    """Height and width near the given ones: multiples of ``factor`` whose product lies in ``pixels``.

    Halves round to even. Very small media keep one token a side, whatever ``pixels`` says. The two sides follow the
    same rule, so a rotated image has as many tokens. qwen-vl-utils differs for strips thinner than half a token: it
    widens them before it looks at ``pixels``, transformers and this function after.

    Raises:
        InputError: the aspect ratio is above 200.
    """
    return _fit(1, 1, height, width, factor, pixels)


def resize_clip(frames: int, height: int, width: int, patching: Patching, pixels: PixelRange) -> tuple[int, int]:
    """``smart_resize`` whose range holds for frames x height x width (Qwen3-VL).

    Raises:
        InputError: the aspect ratio is above 200.
    """
    factor = patching.factor
    frames = max(frames, patching.temporal)  # shorter clips are padded to one temporal patch
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    rounded = round(frames / patching.temporal) * patching.temporal
    return _fit(frames, rounded, height, width, factor, pixels)


def _fit(frames: int, rounded_frames: int, height: int, width: int, factor: int, pixels: PixelRange) -> tuple[int, int]:
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise InputError(f"{width} x {height} pixels: the aspect ratio {ratio:.0f} is above {MAX_ASPECT_RATIO}")
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if rounded_frames * new_height * new_width > pixels.most:
        beta = math.sqrt(frames * height * width / pixels.most)
        new_height = math.floor(height / beta / factor) * factor
        new_width = math.floor(width / beta / factor) * factor
    elif rounded_frames * new_height * new_width < pixels.least:
        beta = math.sqrt(pixels.least / (frames * height * width))
        new_height = math.ceil(height * beta / factor) * factor
        new_width = math.ceil(width * beta / factor) * factor
    return max(factor, new_height), max(factor, new_width)


def to_patches(frames: Sequence[Image.Image], height: int, width: int, patching: Patching) -> np.ndarray:
    """Resize RGB frames (bicubic), normalise them and cut them into patches; an image is one frame.

    The last frame is repeated until the temporal patches are full. Patches stand in the order of the tokens, the
    merge x merge patches of a token together: (time, token row, token column, row and column in the token).

    Returns:
        float32 [P, C x t x p x p].
    """
    resized = [np.asarray(frame.resize((width, height), Image.Resampling.BICUBIC)) for frame in frames]
    resized += resized[-1:] * (-len(resized) % patching.temporal)
    time, rows, columns = patching.grid(len(resized), height, width)
    merge, patch = patching.merge, patching.patch
    shape = (time, patching.temporal, rows // merge, merge, patch, columns // merge, merge, patch, 3)
    cut = np.stack(resized).reshape(shape).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    each = patching.width // 3
    scaled = cut.reshape(time * rows * columns, patching.width) * np.float32(1 / 255)
    scaled -= np.repeat(np.float32(patching.mean), each)
    scaled /= np.repeat(np.float32(patching.std), each)
    return scaled
