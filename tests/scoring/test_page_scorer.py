"""QwenVL HTML: elements with boxes, read from what models write, and scored in order."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.pages import Element, page_match, parse_page
from scoring.score import best_constant, score_answer

PAGE = (
    '```html\n<html><body>\n<h2 data-bbox="10 10 90 30">Fish &amp; Chips</h2>\n'
    '<p data-bbox="10 40 90 60">two lines of text</p>\n'
    '<table data-bbox="10 70 90 99"><tr><th>Item</th><th>Price</th></tr><tr><td>cod</td><td>4.50</td></tr></table>\n'
    "</body></html>\n```"
)


def score(answer, reference=PAGE):
    return score_answer("page_html", "{}", answer, [reference])


def test_elements_are_read_in_order_with_their_text_and_box():
    assert [(element.text, element.box) for element in parse_page(PAGE)] == [
        ("fish & chips", (10, 10, 90, 30)),
        ("two lines of text", (10, 40, 90, 60)),
        ("item price cod 4.50", (10, 70, 90, 99)),
    ]


@pytest.mark.parametrize(
    "variant",
    [
        PAGE.removeprefix("```html\n").removesuffix("\n```"),
        PAGE.replace("h2", "header").replace("<p ", "<section ").replace("</p>", "</section>"),
        PAGE.replace("two lines", "<b>two</b>\n  <span>LINES</span>"),
        PAGE.replace("</p>", ""),
        PAGE.replace("</body></html>\n```", ""),
        PAGE.replace('"', "'"),
        PAGE.replace("10 40 90 60", "11 41 89 60"),
        "Here is the page:\n" + PAGE,
        PAGE.replace("<body>", '<body><img src="x"><hr>'),
    ],
)
def test_the_same_page_written_otherwise_has_full_marks(variant):
    assert score(variant).value == 1.0


@pytest.mark.parametrize(
    ("wrong", "value"),
    [
        (PAGE.replace("two", "too"), 2 / 3),
        (PAGE.replace("10 40 90 60", "50 40 130 60"), 2 / 3),
        (PAGE.replace("10 40 90 60", "10 40 90"), 2 / 3),
        (PAGE.replace("data-bbox", "bbox", 1), 2 / 3),
        (PAGE.replace("</body>", '<p data-bbox="0 0 9 9">more</p></body>'), 3 / 4),
        ('<p data-bbox="10 40 90 60">two lines of text</p><h2 data-bbox="10 10 90 30">Fish & Chips</h2>', 1 / 3),
        ('<p data-bbox="0 0 100 100">everything</p>', 0.0),
    ],
)
def test_what_is_missing_added_or_out_of_place_costs_its_share(wrong, value):
    assert score(wrong).value == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["", "no page", "<p>no box</p>", '<p data-bbox="1 2">x</p>', "<" * 1000, "x" * 200_000]
)
def test_a_text_without_a_boxed_element_is_unparsed(text):
    assert parse_page(text) is None
    assert (score(text).value, score(text).parsed) == (0.0, False)


def test_a_page_of_endless_elements_is_unparsed():
    assert parse_page('<p data-bbox="1 2 3 4">x</p>' * 513) is None


def test_a_reference_without_elements_is_a_fault_of_the_row():
    with pytest.raises(ValueError, match="cannot read the reference"):
        score(PAGE, "<p>no box</p>")


@given(st.text(alphabet="<>/p =\"'data-bbox0123 &;!-\n", max_size=120))
def test_no_text_makes_the_page_parser_fail(text):
    assert 0.0 <= score(text).value <= 1.0


ELEMENTS = st.lists(st.sampled_from("abcd"), max_size=6)


@given(page=ELEMENTS, reference=ELEMENTS.filter(len))
def test_the_value_is_the_longest_common_subsequence_over_the_longer_page(page, reference):
    def elements(texts):
        return [Element((0, 0, 9, 9), [text]) for text in texts]

    def subsequences(texts):
        return {chosen for size in range(len(texts) + 1) for chosen in itertools.combinations(texts, size)}

    longest = max(map(len, subsequences(page) & subsequences(reference)))
    assert page_match(elements(page), elements(reference)) == longest / max(len(page), len(reference))


def test_a_page_has_a_best_constant_answer():
    rows = [{"task": "page", "answers": [PAGE], "scorer": {"name": "page_html", "parameters": "{}"}}] * 2
    assert best_constant(rows)["page"].score == 1.0


@pytest.mark.timeout(20)
@pytest.mark.parametrize("part", ["<a ", "<a/", '<a b="', "<!--", "</a ", "&#"])
def test_markup_that_is_never_closed_costs_no_minutes(part):
    page = '<p data-bbox="1 2 3 4">read'
    assert [element.text for element in parse_page(page + part * (120_000 // len(part)))][:1]
    assert parse_page(f"{page} < 5")[0].text == "read < 5"


@pytest.mark.timeout(5)
def test_end_tags_of_elements_that_were_never_opened_cost_nothing():
    page = '<p data-bbox="1 2 3 4">read' + "<a>" * 21_000 + "</b>" * 16_000 + "</p> no more"
    assert [element.text for element in parse_page(page)] == ["read"]
