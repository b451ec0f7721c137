"""Which letter a multiple-choice answer names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.choice import parse_choice

OPTIONS = ["a cat", "a dog", "vitamin C", "a black cat"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        # What the public harnesses get wrong.
        ("Best answer: C", "C"),
        ("Best option: D", "D"),
        ("A man walks. D", "D"),
        ("Because B is too small, the answer is D", "D"),
        # A letter and nothing else.
        ("C", "C"),
        ("c", "C"),
        (" (C) ", "C"),
        ("C.", "C"),
        ("**C**", "C"),
        ("A", "A"),
        # A letter that is announced.
        ("The answer is A", "A"),
        ("The answer is A because the man walks", "A"),
        ("the answer is c", "C"),
        ("Answer:\nB", "B"),
        ("The correct option is **B**.", "B"),
        ("The correct answer is: option (D), the dog", "D"),
        ("I would choose B", "B"),
        ("Final answer: A. a cat", "A"),
        # A letter with its text, on a line of its own, or at the end.
        ("B. a dog", "B"),
        ("b) a dog", "B"),
        ("B. vitamin C", "B"),
        ("A\nThe man walks.", "A"),
        ("The man walks.\n\nD", "D"),
        ("B is too small and C too big. D", "D"),
        # In brackets, or alone.
        ("It must be (C) then", "C"),
        ("D, because it rains", "D"),
        ("I think B", "B"),
        ("Not A but B", "B"),
        ("C and again C", "C"),
    ],
)
def test_a_named_letter_is_found(text, letter):
    assert parse_choice(text) == letter


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no idea",
        "E",
        "CD",
        "A man walks",
        "The answer is a cat",
        "A or B",
        "The answer is A or B",
        "The answer is (A) or (B)",
        "answer: c/d",
        "Between (A) and (B)",
        "A: 3, B: 4",
        "A: a cat\nB: a dog",
        "It is D or B",
        "The answer is not A",
        "Option A is wrong, so B",
        "The answer is A. The answer is B.",
        "A-frame",
        "B" + " " * 5000,
    ],
)
def test_no_letter_or_several_are_not_guessed(text):
    assert parse_choice(text) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("a cat", "A"),
        ("A dog.", "B"),
        ("It is vitamin C", "C"),
        ("I see a black cat", "D"),
        ("a cat and a dog", None),
        ("B, vitamin C", None),
        ("B. a dog", "B"),
        ("a catalogue", None),
    ],
)
def test_the_text_of_an_option_names_it(text, letter):
    assert parse_choice(text, "ABCD", OPTIONS) == letter


def test_letters_on_offer_decide():
    assert parse_choice("E", "ABCDE") == "E"
    assert parse_choice("I think so", "ABCDEFGHI") is None
    assert parse_choice("The answer is I.", "ABCDEFGHI") == "I"


def test_letters_and_options_must_fit():
    with pytest.raises(ValueError, match="3 options"):
        parse_choice("A", "AB", ["x", "y", "z"])
    with pytest.raises(ValueError, match="capitals"):
        parse_choice("A", "aa")


@given(st.text(max_size=300))
def test_no_text_makes_the_choice_parser_fail(text):
    assert parse_choice(text, "ABCD", OPTIONS) in {"A", "B", "C", "D", None}


@given(
    st.sampled_from("ABCDE"), st.sampled_from(["{}", "({})", "{}.", "Answer: {}", "The best answer is {}.", "**{}**"])
)
def test_every_letter_is_found_in_every_plain_form(letter, form):
    assert parse_choice(form.format(letter), "ABCDE") == letter
