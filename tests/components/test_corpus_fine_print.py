"""Small print: it shows what is asked for, too dense for a compressed tile, beside blank paper or large digits."""

import io

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from components.collect.canvas import Painter
from components.collect.embedded.config import EmbeddedConfig, FinePrintConfig
from components.collect.embedded.rows import embedded_rows


def drawn(**settings):
    config = EmbeddedConfig.model_validate({"heldout": 1, "fine_print": settings})
    return list(embedded_rows(config)[0])


@pytest.fixture
def printed(monkeypatch):
    """Every canvas that ``fine_print`` draws from here on."""
    kept = []
    draw = Painter.draw
    monkeypatch.setattr(Painter, "draw", lambda *given, **named: kept.append(draw(*given, **named)) or kept[-1])
    return kept


def test_small_print_is_what_the_canvas_shows_in_cells_that_a_compressed_row_does_not_part(printed):
    rows = drawn(rows=30, tasks=["read_fine"])
    shared = 0
    for row, canvas in zip(rows, printed, strict=True):
        assert row["messages"][-1]["content"] == " ".join(map(str, canvas.digits))
        assert row["messages"][0]["content"].endswith("Which digits?")
        assert 3 <= len(canvas.digits) <= 6
        lines = {(bottom - 1) // 14 for _, _, _, bottom in canvas.boxes}
        assert lines <= {0, 1} or lines <= {2, 3}
        assert all(bottom - top <= 14 and right - left <= 14 for left, top, right, bottom in canvas.boxes)
        quarters = [((top // 28), (left // 28)) for left, top, _, _ in canvas.boxes]
        shared += len(set(quarters)) < len(quarters)
    assert shared == len(rows), "three digits in two quarters share one"


def test_half_of_a_sparse_canvas_is_blank(printed):
    sides = set()
    for row, canvas in zip(drawn(rows=30, tasks=["read_sparse"]), printed, strict=True):
        image = np.asarray(Image.open(io.BytesIO(row["media"][0]["bytes"]))).astype(int)
        assert image.shape[:2] == (56, 112)
        halves = {left // 56 for left, _, _, _ in canvas.boxes}
        assert len(halves) == 1
        sides |= halves
        blank, inked = (image[:, 56:], image[:, :56]) if halves == {0} else (image[:, :56], image[:, 56:])
        assert np.ptp(blank) <= 24 < 80 < np.ptp(inked)
    assert sides == {0, 1}


def test_large_digits_stand_beside_small_ones_and_both_are_asked_for(printed):
    rows, large_sides = drawn(rows=30, tasks=["read_beside"]), set()
    for row, large, small in zip(rows, printed[::2], printed[1::2], strict=True):
        image = np.asarray(Image.open(io.BytesIO(row["media"][0]["bytes"])))
        assert image.shape == (56, 112)
        assert min(bottom - top for _, top, _, bottom in large.boxes) > 14
        left = np.array_equal(image[:, :56], np.asarray(Image.open(io.BytesIO(large.png))))
        halves = (large, small) if left else (small, large)
        for half, shown in zip(halves, (image[:, :56], image[:, 56:]), strict=True):
            assert np.array_equal(shown, np.asarray(Image.open(io.BytesIO(half.png))))
        assert row["answers"] == [" ".join(str(digit) for half in halves for digit in half.digits)]
        large_sides.add(left)
    assert large_sides == {True, False}


def test_the_label_asked_for_stands_under_the_tallest_column(printed):
    for row, canvas in zip(drawn(rows=30, tasks=["tallest_label"]), printed, strict=True):
        image = np.asarray(Image.open(io.BytesIO(row["media"][0]["bytes"]))).astype(int)
        assert image.shape == (56, 56)
        assert {top // 14 for _, top, _, _ in canvas.boxes} == {3}
        slots = [left // 14 for left, _, _, _ in canvas.boxes]
        heights = [int((image[:42, slot * 14 + 7] >= 100).sum()) for slot in slots]
        assert min(heights) >= 10 and len(set(heights)) == len(heights)
        assert row["answers"] == [str(canvas.digits[heights.index(max(heights))])]
        assert len(set(canvas.digits)) == len(canvas.digits), "one label each"


@pytest.mark.parametrize(
    "wrong",
    [
        {"lines": 3},
        {"canvas": {"cells": 4, "digits": (3, 9), "scale": (1.25, 1.7)}},
        {"canvas": {"cells": 4, "digits": (3, 6), "scale": (1.25, 1.7), "wide_share": 0.5}},
        {"large": {"cells": 2, "digits": (1, 2), "scale": (2.5, 3.4), "canvas": 112}},
        {"canvas": {"cells": 2, "digits": (1, 2), "scale": (1.25, 1.7)}},
    ],
)
def test_small_print_that_cannot_be_laid_out_is_refused(wrong):
    with pytest.raises(ValidationError):
        FinePrintConfig.model_validate({"rows": 1} | wrong)
