"""Boxes in answers and their overlap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.boxes import box_hit, box_iou, format_box, parse_box

CORNER = st.integers(0, 24)
BOX = st.tuples(CORNER, CORNER, CORNER, CORNER)


def in_order(box):
    return min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])


def iou_by_counting_cells(first, second):
    grids = []
    for x1, y1, x2, y2 in (first, second):
        grid = np.zeros((24, 24), bool)
        grid[y1:y2, x1:x2] = True
        grids.append(grid)
    union = np.logical_or(*grids).sum()
    return np.logical_and(*grids).sum() / union if union else 0.0


@pytest.mark.parametrize(
    "text",
    [
        "1 2 3 4",
        "1, 2, 3, 4",
        "[1,2,3,4]",
        "(1,2),(3,4)",
        "The box is [1, 2, 3, 4].",
        "<|box_start|>(1,2),(3,4)<|box_end|>",
        '```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "7"}]\n```',
        '[{"bbox_2d": [1, 2, 3, 4], "label": "trunca',
        "digit 7: 1 2 3 4",
        "v2 1 2 3 4",
        "3 4 1 2",
        "3 2 1 4",
        "1.0 2.0 3.0 4.",
        "1 2 3 4 5 6 7 8",
    ],
)
def test_the_first_four_numbers_in_a_row_are_the_box(text):
    assert parse_box(text) == (1, 2, 3, 4)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no box",
        "1 2 3",
        "1 2 and 3 4",
        "1-2-3-4",
        "1-2 3 4 5",
        "1.2.3.4 5 6",
        "a1 b2 c3 d4",
        "1 2 3 4px",
        "nan nan nan nan",
        "1 2 3 " + "9" * 400,
        " " * 5000 + "1 2 3 4",
    ],
)
def test_a_text_without_four_numbers_in_a_row_has_no_box(text):
    assert parse_box(text) is None


@given(st.tuples(*[st.integers(0, 1000)] * 4))
def test_a_box_as_the_corpus_writes_it_is_read_back(box):
    assert parse_box(format_box(in_order(box))) == in_order(box)


@given(st.text(max_size=300))
def test_any_text_has_an_ordered_box_or_none(text):
    box = parse_box(text)
    assert box is None or (box == in_order(box))


@given(BOX, BOX)
def test_iou_equals_the_share_of_counted_cells(first, second):
    first, second = in_order(first), in_order(second)
    assert box_iou(first, second) == pytest.approx(iou_by_counting_cells(first, second))


@given(BOX, BOX)
def test_iou_is_symmetric(first, second):
    assert box_iou(in_order(first), in_order(second)) == box_iou(in_order(second), in_order(first))


def test_a_box_without_area_overlaps_nothing_not_even_itself():
    assert box_iou((5, 5, 5, 9), (5, 5, 5, 9)) == 0.0


def test_an_iou_of_exactly_the_threshold_is_a_hit():
    assert box_hit((0, 0, 10, 5), [(0, 0, 10, 10)], 0.5) == 1.0
    assert box_hit((0, 0, 10, 4.99), [(0, 0, 10, 10)], 0.5) == 0.0


def test_any_reference_may_be_hit():
    assert box_hit((0, 0, 1, 1), [(5, 5, 9, 9), (0, 0, 1, 1)]) == 1.0
