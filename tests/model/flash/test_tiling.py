"""Dynamic high-resolution tiling: the published golden cases, and what must hold for every image."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.data.errors import InputError
from model.flash.config import ModelConfig
from model.flash.images import Tiling, choose_grid, count_tiles, read_image, reencode_jpeg, tile_image
from tests.tiny import encoded, picture


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (448, 448, (1, 1)),
        (672, 672, (2, 2)),
        (896, 896, (2, 2)),
        (1344, 1344, (3, 3)),
        (1920, 1080, (4, 2)),
        (800, 600, (4, 3)),
    ],
)
def test_grid_of_the_released_preprocessing(width, height, grid):
    assert choose_grid(width, height, Tiling()) == grid


@pytest.mark.parametrize(("side", "tiles", "tokens"), [(448, 1, 256), (896, 5, 1280), (1344, 10, 2560)])
def test_tiles_and_tokens_of_square_images(side, tiles, tokens):
    assert count_tiles(side, side, Tiling()) == tiles
    assert tiles * ModelConfig().rows_per_tile == tokens


def test_most_tiles_are_thirteen_with_3328_rows():
    most = max(count_tiles(w, h, Tiling()) for w in range(100, 3000, 100) for h in range(100, 3000, 100))
    assert (most, most * ModelConfig().rows_per_tile) == (13, 3328)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 24))
def test_grid_stays_within_its_bounds_and_no_grid_is_nearer_in_shape(width, height, most):
    columns, rows = choose_grid(width, height, Tiling(max_tiles=most))
    assert 1 <= columns * rows <= most
    distance = abs(width / height - columns / rows)
    others = [(c, r) for c in range(1, most + 1) for r in range(1, most // c + 1)]
    assert all(distance <= abs(width / height - c / r) for c, r in others)


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_grid_is_the_one_transformers_chooses(width, height):
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    assert choose_grid(width, height, Tiling()) == get_optimal_tiled_canvas((height, width), (448, 448), 1, 12)


def test_tiles_are_row_major_with_the_thumbnail_last(rng):
    image = picture(rng, columns=3, rows=2)
    tiles = tile_image(image, Tiling(tile=56))
    pixels = np.asarray(image)
    for index in range(6):
        row, column = divmod(index, 3)
        crop = pixels[row * 56 : (row + 1) * 56, column * 56 : (column + 1) * 56]
        assert np.array_equal(tiles[index], crop)
    assert np.array_equal(tiles[6], np.asarray(image.resize((56, 56), Image.Resampling.BICUBIC)))
    assert len(tiles) == 7


def test_several_images_share_the_budget_of_tiles():
    assert [Tiling().shared_by(n).max_tiles for n in (1, 2, 5, 12, 40)] == [12, 6, 2, 1, 1]


def chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def bad_images(rng):
    whole = encoded(picture(rng, 2, 2))
    frames = [picture(rng), picture(rng)]
    size = (20_000).to_bytes(4, "big") * 2
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\x00\x00\x00")
    bomb += chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return {
        "truncated": (whole[: len(whole) // 2], "cannot be decoded"),
        "zero bytes": (b"", "0 bytes"),
        "20,000 x 20,000": (bomb, "pixels"),
        "animated": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "animated"),
        "text": (b"not an image", "not an image of a known format"),
        "too many bytes": (b"\x00" * 20_000_001, "the limit is"),
    }


@pytest.mark.parametrize("name", ["truncated", "zero bytes", "20,000 x 20,000", "animated", "text", "too many bytes"])
def test_bad_image_is_refused_in_one_clear_line(rng, name):
    data, reason = bad_images(rng)[name]
    with pytest.raises(InputError, match=reason) as caught:
        read_image(data)
    assert "\n" not in str(caught.value)


def test_a_pixel_is_an_image():
    assert tile_image(read_image(encoded(Image.new("RGB", (1, 1), "red"))), Tiling(tile=56)).shape == (1, 56, 56, 3)


def test_cmyk_and_transparency_become_rgb(rng):
    assert read_image(encoded(picture(rng).convert("CMYK"), "JPEG")).mode == "RGB"
    clear = read_image(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 0))))
    assert clear.getpixel((0, 0)) == (255, 255, 255)


def test_16_bit_grey_keeps_its_shades():
    shades = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    read = np.asarray(read_image(encoded(Image.fromarray(shades))))[..., 0]
    np.testing.assert_array_equal(read, shades >> 8)


def test_a_photo_with_its_preview_behind_it_is_the_photo():
    photo, preview = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (4, 3), "blue")
    read = read_image(encoded(photo, "MPO", save_all=True, append_images=[preview]))
    assert read.size == (40, 30)
    red, _, blue = read.getpixel((20, 15))
    assert red > 200 and blue < 50


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to view
    upright = read_image(encoded(image, "PNG", exif=exif))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5)) == (255, 255, 255)
    assert upright.getpixel((10, 35)) == (0, 0, 0)


def test_jpeg_reencoding_changes_pixels_little(rng):
    image = Image.fromarray(np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8))
    again = reencode_jpeg(image, 95)
    difference = np.abs(np.asarray(image, float) - np.asarray(again, float)).mean()
    assert again.size == image.size
    assert 0 < difference < 10
