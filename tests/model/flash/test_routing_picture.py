"""The picture of a routing: read from its pixels."""

import numpy as np
import pytest
from PIL import Image

from model.flash.encoding import look
from model.flash.picture import SeenImage, draw_answer, draw_tiles, share, snippet
from tests.tiny import picture
from tests.tiny_flash import random_flash_model

GREY = Image.new("RGB", (400, 200), (128, 128, 128))


def hues(drawn, columns, rows):
    """Mean of red minus blue inside each cell of a grid: above zero is orange, below is teal."""
    cells = []
    for number in range(columns * rows):
        row, column = divmod(number, columns)
        side = drawn.height / rows
        box = (column * side + 20, row * side + 20, (column + 1) * side - 20, (row + 1) * side - 40)
        cell = np.asarray(drawn.crop(tuple(map(round, box))), float)
        cells.append(cell[..., 0].mean() - cell[..., 2].mean())
    return cells


def test_compressed_tiles_are_orange_kept_ones_teal_and_sure_ones_stronger():
    probabilities = [0.99, 0.6, 0.4, 0.01]
    drawn = draw_tiles(SeenImage(GREY, (4, 1), [True, True, False, False], probabilities, 256))
    sure, hesitant, nearly, certain = hues(drawn, 4, 1)
    assert sure > hesitant > 5 and -5 > nearly > certain
    again = draw_tiles(SeenImage(GREY, (4, 1), [True, True, False, False], probabilities, 256))
    assert drawn.tobytes() == again.tobytes()


@pytest.mark.parametrize(("grid", "tiles"), [((1, 1), 1), ((4, 3), 13), ((1, 12), 13), ((12, 1), 13)])
def test_every_grid_has_a_picture_of_bounded_size(grid, tiles):
    seen = SeenImage(GREY, grid, [False] * tiles, None, 256)
    drawn = draw_tiles(seen)
    assert max(drawn.size) < 1400
    assert draw_answer([seen, seen], "What? " * 200, "x" * 3000).width >= drawn.width


def test_tokens_are_those_of_the_tiles():
    seen = SeenImage(GREY, (2, 2), [True, True, False, True, False], [0.9, 0.9, 0.1, 0.9, 0.1], 256)
    assert (seen.tokens, seen.full_tokens) == (3 * 64 + 2 * 256, 5 * 256)
    assert share([seen]) == "704 of 1,280 visual tokens (55%)"
    assert share([seen, seen]).startswith("1,408 of 2,560")


def test_a_snippet_says_what_was_asked_and_escapes_it():
    made = snippet([SeenImage(GREY, (1, 1), [True], [0.9], 16)], "Is 1 < 2 & 3?", "<b>yes</b>", "yes")
    assert made.startswith("<figure") and made.endswith("</figure>")
    assert "Is 1 &lt; 2 &amp; 3?" in made and "&lt;b&gt;yes&lt;/b&gt; (truth: yes)" in made
    assert "4 of 16 visual tokens (25%)" in made and "data:image/jpeg;base64," in made


def test_what_is_drawn_is_what_the_network_does(tokenizer, rng):
    network, _ = random_flash_model(tokenizer)
    images = [picture(rng, 2, 2), picture(rng)]
    for seen, encoded in zip(look(network, images), network.encode(images), strict=True):
        assert [4 if flag else 16 for flag in seen.compressed] == encoded.rows_per_tile
        assert seen.tokens == len(encoded.features) and seen.grid == encoded.grid
        assert [p >= 0.5 for p in seen.probabilities] == list(seen.compressed)
    network.route_by(None)
    full = look(network, images)[0]
    assert not any(full.compressed) and full.probabilities is not None, "the router is shown, not obeyed"
    assert look(network, []) == []
