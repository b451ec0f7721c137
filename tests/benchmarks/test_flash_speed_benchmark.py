"""What flash_speed compares: half of the visual tokens, whatever the size of the image."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import flash_speed
from model.flash.decisions import Decision, decide
from tests.tiny import TILE, byte_tokenizer
from tests.tiny_flash import random_flash_model


@pytest.mark.parametrize("side", flash_speed.GRIDS)
def test_three_requests_together_keep_half_of_their_tokens(side):
    tiles = flash_speed.tiles_of(side)
    chosen = [
        decide(np.random.default_rng(place).random(tiles), [tiles], decision).sum()
        for place, decision in enumerate(flash_speed.decisions(tiles, 256))
    ]
    assert sum(chosen) == 2 * tiles
    assert max(chosen) - min(chosen) <= 1


def test_both_sides_see_the_same_images_and_each_request_has_its_own_budget(rng):
    network, _ = random_flash_model(byte_tokenizer())
    images = [Image.fromarray(rng.integers(0, 256, (2 * TILE, 2 * TILE, 3), dtype=np.uint8)) for _ in range(3)]
    full, full_tokens = flash_speed.requests_of(network, images, [None] * 3)
    routed, tokens = flash_speed.requests_of(network, images, flash_speed.decisions(5, 16))
    assert (full_tokens, tokens) == (240, 120)
    assert [len(request.features[0]) for request in full] == [80] * 3
    assert sorted(len(request.features[0]) for request in routed) == [32, 44, 44]
    network.route_by(Decision("budget", token_budget=44))
    alone = network.encode([images[0]])[0].features
    assert alone.shape == routed[0].features[0].shape


@pytest.mark.parametrize(("side", "name", "published"), [(1, "1 tile", 448), (2, "5 tiles", 896)])
def test_a_size_is_named_by_its_tiles_and_says_the_pixels_that_were_measured(monkeypatch, side, name, published):
    network, processor = random_flash_model(byte_tokenizer())
    monkeypatch.setattr(flash_speed, "_BATCH", 3)
    monkeypatch.setattr(flash_speed, "_NEW_TOKENS", 1)
    line = flash_speed.line_of(flash_speed.measure(network, processor, side, 1), side)
    assert flash_speed.label(side) == name
    assert (line["pixels"], line["published_pixels"], line["visual_tokens_kept"]) == (side * TILE, published, 0.5)


@pytest.mark.parametrize(("size", "hidden", "layers"), [("1b", 1024, 28), ("8b", 4096, 36)])
def test_the_published_shapes_need_no_weights_of_their_own(size, hidden, layers):
    shape = flash_speed.published(size)
    assert (shape.language.hidden_size, shape.language.num_hidden_layers) == (hidden, layers)
    assert (shape.rows_per_tile, shape.vision.hidden_size, shape.language.vocab_size) == (256, 1024, 151_936)
    assert shape.vision_checkpoint is shape.language_checkpoint is None
