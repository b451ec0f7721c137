r"""Thoughts and boxes: where the answer stands, and whether it stands where it should."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scoring.answer_format import extract_boxed, final_answer, format_reward, has_format
from scoring.score import Score, score_answer


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"\boxed{8}", "8"),
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{3}, no, \boxed{4}", "4"),
        (r"\boxed{3}, no, \boxed{4", "3"),
        (r"\boxed{\boxed{8}}", "8"),
        (r"\boxed {8}", "8"),
        (r"\boxed{}", ""),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a\\{b}}", r"a\\{b}"),
        (r"}}{ \boxed{8}", "8"),
        (r"\boxed{8", None),
        (r"\boxed 8", None),
        (r"\fbox{8} {8}", None),
        ("8", None),
        ("", None),
    ],
)
def test_the_last_complete_box_is_taken_with_the_braces_inside_it(text, boxed):
    assert extract_boxed(text) == boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("8", "8"),
        (" 8 ", " 8 "),
        (r"<think>..</think>\boxed{8}", "8"),
        ("<think>3 and 5</think>\n8", "8"),
        (r"<think>\boxed{3}</think>8", "8"),
        (r"<think>\boxed{3}</think>it is \boxed{5} or \boxed{8}", "8"),
        (r"\boxed{8}<think>wait</think>", "8"),
        ("the prompt opened it</think>8", "8"),
        ("<think>a</think>3<think>b</think>8", "8"),
        ("<think>a<think>b</think>8", "8"),
        ("<think>8 or 9", ""),
        (r"<think>8 or \boxed{9}", ""),
        ("<think>8</think>", ""),
        (r"\boxed{\text{yes}}", "yes"),
        (r"\boxed{\text{a} or \text{b}}", r"\text{a} or \text{b}"),
        (r"\boxed{$8$}", "8"),
        (r"\boxed{12\%}", "12%"),
        (r"\boxed{5\$}", "5$"),
    ],
)
def test_the_final_answer_stands_in_the_box_or_after_the_thought(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "well_formed"),
    [
        (r"<think>3 + 5</think>\boxed{8}", True),
        ("<think>\n</think>\nso \\boxed{\\frac{1}{2}}.", True),
        (r"<think></think>\boxed{8}", True),
        ("8", False),
        (r"\boxed{8}", False),
        ("<think>3 + 5</think>8", False),
        (r"<think>\boxed{8}</think>", False),
        (r"<think>3 + 5</think>\boxed{8", False),
        (r"<think>3 + 5\boxed{8}", False),
        (r"3 + 5</think>\boxed{8}", False),
        (r"8 <think>3 + 5</think>\boxed{8}", False),
        (r"<think>3</think><think>5</think>\boxed{8}", False),
        (r"<think><think>3</think>\boxed{8}", False),
        (r"<think>3</think></think>\boxed{8}", False),
    ],
)
def test_the_format_is_one_thought_and_then_a_box(text, well_formed):
    assert has_format(text) is well_formed
    assert format_reward(text) == float(well_formed)


@given(
    st.lists(st.sampled_from(["<think>", "</think>", r"\boxed{", "}", "{", "8", "\n", "\\"]), max_size=8).map("".join)
)
@example(r"<think></think>\boxed{}")
def test_what_is_well_formed_is_so_by_the_released_pattern_with_one_thought(text):
    published = re.fullmatch(r"<think>.*</think>.*\\boxed\{.*\}.*", text, re.DOTALL) is not None
    assert not has_format(text) or (published and text.count("<think>") == text.count("</think>") == 1)


@given(st.text(alphabet="ab1 .{}\\$%", max_size=30).filter(lambda text: "\\" not in text))
def test_a_text_without_thought_and_box_is_its_own_answer(text):
    assert final_answer(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "<think>" + "so " * 33_333,
        "<think>" * 14_000,
        "</think>" * 12_000,
        "\\boxed{" * 50_000,
        "{" * 50_000 + "}" * 50_000,
        "\\boxed{" + "{" * 50_000 + "8" + "}" * 50_000 + "}",
        "\\boxed" + " " * 100_000,
        "\\" * 100_001,
        "\\boxed{" + "\\text{" * 20_000,
    ],
    ids=lambda text: f"{text[:12]}...",
)
def test_a_long_or_hostile_answer_is_read_in_one_pass(text):
    """A quadratic scan of these takes longer than a test may; ours takes hundredths of a second."""
    assert final_answer(text).count("8") <= 1
    assert not has_format(text)
    assert score_answer("numeric", "", text, ["7"]).value == 0.0


@pytest.mark.parametrize(
    ("name", "parameters", "answer", "references"),
    [
        ("exact", "", "1 2 3", ["1 2 3"]),
        ("exact", '{"after": ":"}', "7 > 3: larger", ["larger"]),
        ("numeric", "", "8", ["8"]),
        ("numeric", '{"after": "="}', "3 + 5 = 8", ["8"]),
        ("anls", "", "a street", ["a street"]),
        ("relaxed", "", "102", ["100"]),
        ("box_iou", "", "1 2 30 40", ["1 2 30 40"]),
        ("point_in_box", "", "5 5", ["0 0 10 10"]),
        ("multiple_choice", "", "C", ["C"]),
        ("page_html", "", '<p data-bbox="1 2 30 40">x</p>', ['<p data-bbox="1 2 30 40">x</p>']),
    ],
)
def test_every_scorer_reads_the_answer_behind_a_thought_and_in_a_box(name, parameters, answer, references):
    assert score_answer(name, parameters, answer, references) == Score(1.0)
    thought = "<think>perhaps 4, 1 1 9 9 or B</think>"
    assert score_answer(name, parameters, f"{thought}\n{answer}", references) == Score(1.0)
    assert score_answer(name, parameters, rf"{thought}So it is 7: \boxed{{{answer}}}", references).value == 1.0
    assert score_answer(name, parameters, f"<think>{answer}", references).value == 0.0


def test_a_reference_with_a_box_or_a_thought_is_compared_with_the_text_as_it_stands():
    assert score_answer("exact", "", r"\boxed{8}", [r"\boxed{8}"]) == Score(1.0)
    assert score_answer("exact", "", "8", [r"\boxed{8}"]) == Score(0.0)
    assert score_answer("exact", "", "the tag </think> ends it", ["the tag </think> ends it"]) == Score(1.0)


def test_a_reference_in_latex_is_compared_with_the_latex_of_the_box():
    assert score_answer("exact", "", r"\boxed{12\%}", [r"12\%"]) == Score(1.0)
    assert score_answer("exact", "", r"\boxed{12\%}", ["12%"]) == Score(1.0)


def test_a_page_that_shows_a_box_keeps_it():
    page = r'<p data-bbox="1 2 30 40">\boxed{8}</p><p data-bbox="1 50 30 60">x</p>'
    assert score_answer("page_html", "", page, [page]) == Score(1.0)
    plain = page.replace(r"\boxed{8}", "8")
    assert score_answer("page_html", "", page, [plain]) == Score(0.5)
