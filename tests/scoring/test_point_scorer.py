"""Points in answers and the boxes they must lie in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.boxes import parse_point, point_hit
from scoring.score import score_answer

NUMBER = st.integers(0, 999)


@pytest.mark.parametrize(
    "text",
    [
        "512 430",
        "(512, 430)",
        "[512,430]",
        "Click (512, 430).",
        "<|box_start|>(512,430)<|box_end|>",
        '{"point_2d": [512, 430], "label": "Save"}',
        '<tool_call>\n{"name": "mouse", "arguments": {"action": "left_click", "coordinate": [512, 430]}}\n</tool_call>',
        "500 420 524 440",
        "(524, 440), (500, 420)",
        "step 1: 512 430",
    ],
)
def test_the_first_numbers_in_a_row_are_the_point_or_the_box_around_it(text):
    assert parse_point(text) == (512, 430)


@pytest.mark.parametrize(
    "text", ["", "512", "no", "1 2 3", "1 2 3 4 5", "x512 y430", "512 and 430", "9 9" + " " * 5000]
)
def test_a_text_without_two_or_four_numbers_in_a_row_has_no_point(text):
    assert parse_point(text) is None


@given(st.text(max_size=200))
def test_no_text_makes_the_point_parser_fail(text):
    point = parse_point(text)
    assert point is None or len(point) == 2


@given(x=NUMBER, y=NUMBER, corners=st.tuples(NUMBER, NUMBER, NUMBER, NUMBER))
def test_a_point_is_right_when_no_side_of_the_box_is_beyond_it(x, y, corners):
    left, right = sorted(corners[:2])
    top, bottom = sorted(corners[2:])
    reference = f"{left:03d} {top:03d} {right:03d} {bottom:03d}"
    inside = x in range(left, right + 1) and y in range(top, bottom + 1)
    scored = score_answer("point_in_box", "{}", f"{x:03d} {y:03d}", [reference])
    assert (scored.value, scored.parsed) == (float(inside), True)
    # The reference, as an answer, stands for its middle: no row rejects its own.
    assert score_answer("point_in_box", "{}", reference, [reference]).value == 1.0


def test_any_reference_may_be_hit():
    assert point_hit((5, 5), [(0, 0, 1, 1), (4, 4, 6, 6)]) == 1.0
    assert point_hit((5, 5), [(0, 0, 1, 1), (6, 6, 7, 7)]) == 0.0


def test_an_answer_without_a_point_is_unparsed():
    scored = score_answer("point_in_box", "{}", "there", ["0 0 9 9"])
    assert (scored.value, scored.parsed) == (0.0, False)
