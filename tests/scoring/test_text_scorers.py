"""Exact match and ANLS."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.text import anls, exact_match, levenshtein, normalise

WORDS = st.text(alphabet="abAB \u0130\u00df1", max_size=12)


def edit_distance_by_definition(first: str, second: str) -> int:
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        substitution = distance(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(substitution, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(first), len(second))


def anls_as_published(prediction: str, answers: list[str]) -> float:
    def normal(text):
        return " ".join(text.strip().lower().split())

    distances = []
    for answer in answers:
        longest = max(len(prediction), len(answer))
        edits = edit_distance_by_definition(normal(answer), normal(prediction))
        distances.append(edits / longest if longest else 0.0)
    similarity = 1 - min(distances)
    return similarity if similarity >= 0.5 else 0.0


@pytest.mark.parametrize(
    ("first", "second", "edits"),
    [("kitten", "sitting", 3), ("flaw", "lawn", 2), ("intention", "execution", 5), ("", "abc", 3), ("abc", "", 3)],
)
def test_textbook_edit_distances(first, second, edits):
    assert levenshtein(first, second) == edits


@given(WORDS, WORDS)
def test_edit_distance_equals_its_recursive_definition(first, second):
    assert levenshtein(first, second) == edit_distance_by_definition(first, second)


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=200))
def test_edit_distance_is_a_metric(a, b, c):
    assert levenshtein(a, b) == levenshtein(b, a)
    assert (levenshtein(a, b) == 0) == (a == b)
    assert levenshtein(a, c) <= levenshtein(a, b) + levenshtein(b, c)


def test_edit_distance_of_long_strings_crosses_machine_words():
    assert levenshtein("ab" * 500, "ba" * 500) == 2
    assert levenshtein("x" * 1000, "x" * 300 + "y" + "x" * 699) == 1


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_anls_equals_the_published_formula(prediction, answers):
    assert anls(prediction, answers) == pytest.approx(anls_as_published(prediction, answers), abs=1e-12)


def test_anls_is_a_similarity_not_a_distance():
    assert anls("paris", ["paris"]) == 1.0
    assert anls("qwxyz", ["paris"]) == 0.0


def test_anls_of_exactly_one_half_is_kept():
    assert anls("ab", ["ax"]) == 0.5


def test_anls_just_below_one_half_is_zero():
    assert anls("abc", ["axy"]) == 0.0


def test_anls_of_two_empty_strings_is_one():
    assert anls("", [""]) == 1.0


def test_anls_of_an_empty_answer_is_zero():
    assert anls("", ["a"]) == 0.0
    assert anls("a", [""]) == 0.0


def test_anls_ignores_case_and_white_space_when_it_counts_edits():
    assert anls("  New   YORK ", ["new york"]) == 1.0


def test_anls_divides_by_the_length_of_the_raw_strings():
    # One edit; 8 normalised characters, but 12 as written.
    assert anls("ab      cd  ", ["ab ce"]) == pytest.approx(1 - 1 / 12)


def test_anls_takes_the_best_reference():
    assert anls("colour", ["paint", "color"]) == pytest.approx(1 - 1 / 6)


def test_exact_match_ignores_case_width_and_white_space():
    assert exact_match(" Ｆovea\n vlm", ["fovea VLM"]) == 1.0
    assert exact_match("straße", ["STRASSE"]) == 1.0


def test_exact_match_does_not_ignore_punctuation_or_leading_zeros():
    assert exact_match("7.", ["7"]) == 0.0
    assert exact_match("07", ["7"]) == 0.0


@given(st.text(), st.text())
def test_exact_match_says_whether_normalised_strings_are_equal(prediction, answer):
    assert exact_match(prediction, [answer]) == float(normalise(prediction) == normalise(answer))
