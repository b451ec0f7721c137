"""Images to tiles: safe decoding and dynamic high-resolution tiling. Imports no torch.

Source: InternVL3.5 (arXiv 2508.18265), section 2.1; the tie rule follows the released preprocessing code.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from model.data.errors import InputError

if TYPE_CHECKING:
    from model.data.schema import Row

MAX_IMAGE_BYTES = 20_000_000
MAX_IMAGE_PIXELS = 40_000_000
T = TypeVar("T")
_ORIENTATION = 0x0112
# Where a PNG may say it. It may do so after its pixels, so Pillow decodes them all before it answers.
_PNG_ORIENTATION = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type")
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True)
class Tiling:
    """How an image becomes tiles.

    Attributes:
        tile: side of a tile in pixels.
        min_tiles, max_tiles: bounds of the grid, the thumbnail not counted.
        use_thumbnail: append the whole image as a last tile when the grid has more than one.
    """

    tile: int = 448
    min_tiles: int = 1
    max_tiles: int = 12
    use_thumbnail: bool = True

    def shared_by(self, images: int) -> "Tiling":
        """The tiling of one of ``images`` images in a sample: they share the budget of tiles."""
        most = max(1, self.max_tiles // max(1, images))
        return Tiling(self.tile, min(self.min_tiles, most), most, self.use_thumbnail)


def read_image(data: bytes, max_bytes: int = MAX_IMAGE_BYTES, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Decode an encoded image to RGB, upright.

    The header is checked before a pixel is decoded. EXIF rotation is applied, CMYK, palettes and 16-bit grey
    are converted, transparency is laid on white.

    Raises:
        InputError: empty, too large, of an unknown format, animated, or broken.
    """
    with _decoding():
        image = _open(data, max_bytes, max_pixels)
        image.load()
        image = ImageOps.exif_transpose(image)
    return _to_rgb(image)


def image_size(data: bytes, max_bytes: int = MAX_IMAGE_BYTES, max_pixels: int = MAX_IMAGE_PIXELS) -> tuple[int, int]:
    """Width and height of an encoded image once it stands upright; pixels are decoded only to find a PNG's EXIF.

    Raises:
        InputError: as ``read_image``, as far as the header tells.
    """
    with _decoding():
        image = _open(data, max_bytes, max_pixels)
        width, height = image.size
        if image.format == "PNG" and not any(mark in data for mark in _PNG_ORIENTATION):
            return width, height
        # Orientations 5 to 8 lie on their side.
        return (height, width) if image.getexif().get(_ORIENTATION, 1) >= 5 else (width, height)


def _open(data: bytes, max_bytes: int, max_pixels: int) -> Image.Image:
    if not data:
        raise InputError("image is empty (0 bytes)")
    if len(data) > max_bytes:
        raise InputError(f"image has {len(data)} bytes; the limit is {max_bytes}")
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(f"image is {width} x {height} pixels; the limit is {max_pixels} pixels in all")
    # Cameras put a preview behind the photo in one file ("MPO"): the first image is the photo.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise InputError(f"image is animated ({image.n_frames} frames)")
    return image


@contextmanager
def _decoding() -> Iterator[None]:
    """Pillow's many errors as one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"not an image of a known format ({', '.join(_FORMATS)})") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, EOFError) as error:
        raise InputError(f"image cannot be decoded: {error}") from error


def row_images(row: "Row") -> list[Image.Image]:
    """The decoded images of a row.

    Raises:
        InputError: names the row whose medium cannot be read, or is not in the row.
    """
    return [of_row(row, number, read_image) for number in range(len(row["media"]))]


def of_row(row: "Row", number: int, read: Callable[[bytes], T]) -> T:
    """``read`` of the bytes of the image ``row["media"][number]``.

    Raises:
        InputError: names the row whose medium is no image, is not in the row, or cannot be read.
    """
    medium = row["media"][number]
    if medium["kind"] != "image" or medium["bytes"] is None:
        raise InputError(f"row {row['id']}: media[{number}]: only images whose bytes are in the row can be read")
    try:
        return read(medium["bytes"])
    except InputError as error:
        raise InputError(f"row {row['id']}: media[{number}]: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        # Pillow would cut 16-bit grey off at 255, which leaves a white image.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


@lru_cache(maxsize=64)
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    grids = {
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
        if min_tiles <= columns * rows
    }
    return tuple(sorted(grids, key=lambda grid: (grid[0] * grid[1], *grid)))


def choose_grid(width: int, height: int, tiling: Tiling) -> tuple[int, int]:
    """Columns and rows of the grid whose aspect ratio is nearest to the image's.

    Among grids of the same ratio the larger one wins while the image covers more than half of its area.
    """
    ratio, area = width / height, width * height
    best, best_distance = (1, 1), float("inf")
    for columns, rows in _grids(tiling.min_tiles, tiling.max_tiles):
        distance = abs(ratio - columns / rows)
        large_enough = area > 0.5 * tiling.tile**2 * columns * rows
        if distance < best_distance or (distance == best_distance and large_enough):
            best, best_distance = (columns, rows), distance
    return best


def count_tiles(width: int, height: int, tiling: Tiling) -> int:
    """Tiles of an image of this size, the thumbnail included."""
    columns, rows = choose_grid(width, height, tiling)
    return columns * rows + int(tiling.use_thumbnail and columns * rows > 1)


def tile_image(image: Image.Image, tiling: Tiling) -> np.ndarray:
    """Cut an RGB image into tiles, row-major, the thumbnail last.

    Returns:
        uint8 array [N, tile, tile, 3].
    """
    side = tiling.tile
    columns, rows = choose_grid(image.width, image.height, tiling)
    canvas = np.asarray(image.resize((side * columns, side * rows), Image.Resampling.BICUBIC))
    tiles = canvas.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(rows * columns, side, side, 3)
    if tiling.use_thumbnail and len(tiles) > 1:
        thumbnail = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
        tiles = np.concatenate([tiles, thumbnail[None]])
    return np.ascontiguousarray(tiles)


def reencode_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The image after a trip through JPEG at ``quality`` (augmentation of InternVL3.5, section 2.2)."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
