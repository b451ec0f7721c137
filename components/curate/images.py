"""What curation knows about an image: a check that it decodes, a perceptual hash, a difference in pixels."""

import hashlib
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from components.curate.recipe import Decode
from model.data.errors import InputError
from model.flash.images import read_image

_HASH_SIDE = 32  # the image is reduced to this before the cosine transform
_HASH_KEPT = 8  # of whose coefficients the lowest 8 x 8 make the 64 bits
_COMPARED_SIDE = 128
_ANY_PIXELS = 1 << 62  # decode has refused what is too large
_BLOCK = 4


class ImageFacts(NamedTuple):
    """Facts about one stored image: SHA-256 and perceptual hash in hexadecimal, size in pixels as stored."""

    sha256: str
    phash: str
    format: str
    width: int
    height: int


def inspect_image(medium: Mapping[str, Any], section: Decode) -> ImageFacts:
    """Check an image and compute its facts. The header is looked at before any pixel is decoded.

    Raises:
        InputError: not held in the row, too large, too small, animated, broken, or not what its hash says.
    """
    if medium["kind"] != "image":
        raise InputError(f"{medium['kind']} is not supported by this line")
    data = medium["bytes"]
    if data is None:
        raise InputError("the image lies at a uri; curation needs its bytes in the row")
    sha256 = hashlib.sha256(data).hexdigest()
    if medium["sha256"] not in (None, sha256):
        raise InputError("its sha256 is not that of its bytes")
    image = read_image(data, section.max_bytes, section.max_pixels)
    if min(image.size) < section.min_side:
        raise InputError(f"{image.width} x {image.height} pixels; the least is {section.min_side} a side")
    with Image.open(io.BytesIO(data)) as stored:
        return ImageFacts(sha256, f"{perceptual_hash(image):016x}", stored.format or "", *stored.size)


def perceptual_hash(image: Image.Image) -> int:
    """64-bit hash of the low frequencies of a 32 x 32 grey reduction: a bit says if a coefficient is above the median.

    Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010).
    """
    grey = np.asarray(image.convert("L").resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.LANCZOS), np.float64)
    # Rounded, so that coefficients that are zero but for the last bits stay on one side of the median.
    coefficients = np.round(_COSINES @ grey @ _COSINES.T, 3)
    bits = coefficients > np.median(coefficients)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _cosines() -> np.ndarray:
    """The first rows of the DCT-II matrix [8, 32]."""
    frequency, sample = np.mgrid[:_HASH_KEPT, :_HASH_SIDE]
    return np.cos(np.pi * frequency * (2 * sample + 1) / (2 * _HASH_SIDE))


_COSINES = _cosines()


def reduced_grey(data: bytes) -> np.ndarray:
    """An image for comparison: uint8 [H, W], grey, upright, at most 128 pixels a side."""
    image = read_image(data, len(data), _ANY_PIXELS).convert("L")
    image.thumbnail((_COMPARED_SIDE, _COMPARED_SIDE), Image.Resampling.BOX, reducing_gap=None)
    return np.asarray(image)


def pixel_difference(first: np.ndarray, second: np.ndarray) -> float:
    """The largest mean absolute difference, of 1, in any 4 x 4 block of two grey images [H, W].

    The largest and not the mean over the image: two canvases that differ in one small digit are different. The larger
    image is reduced to the size of the smaller; images of another aspect ratio differ entirely (1.0).
    """
    if first.shape != second.shape:
        small, large = sorted((first, second), key=np.size)
        scales = [a / b for a, b in zip(large.shape, small.shape, strict=True)]
        if max(scales) > 1.03 * min(scales):
            return 1.0
        size = (small.shape[1], small.shape[0])
        first, second = small, np.asarray(Image.fromarray(large).resize(size, Image.Resampling.BOX))
    gap = np.abs(first.astype(np.int16) - second)
    height, width = (max(_BLOCK, side - side % _BLOCK) for side in gap.shape)
    gap = np.pad(gap, [(0, max(0, height - gap.shape[0])), (0, max(0, width - gap.shape[1]))])[:height, :width]
    blocks = gap.reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).mean((1, 3))
    return float(blocks.max()) / 255
