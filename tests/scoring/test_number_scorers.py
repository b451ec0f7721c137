"""Numbers in answers, and ChartQA's relaxed accuracy."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.numbers import numeric_match, parse_number, relaxed_match


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", 3.0),
        (" 3.\n", 3.0),
        ("There are 3 digits.", 3.0),
        ("**42**", 42.0),
        ("x=5", 5.0),
        ("-7", -7.0),
        ("\u22127", -7.0),
        ("+0.5", 0.5),
        (".5", 0.5),
        ("1,234", 1234.0),
        ("1,234,567.89", 1234567.89),
        ("12%", 0.12),
        ("12 %", 0.12),
        ("1e3", 1000.0),
        ("3 (three, so 3)", 3.0),
        ("3 = 3.0", 3.0),
    ],
)
def test_the_one_number_in_a_text_is_read(text, number):
    assert parse_number(text) == pytest.approx(number)


@pytest.mark.parametrize(
    "text",
    ["", "none", "3 or 4", "3-4", "1.2.3", "12,34", "3cm", "B2B", "nan", "inf", "1e999", "0x10", "1_000", "1 " * 4000],
)
def test_a_text_with_no_number_or_several_states_none(text):
    assert parse_number(text) is None


@given(st.integers(-(10**12), 10**12))
def test_every_integer_is_read_plain_and_with_thousands_separators(value):
    assert parse_number(str(value)) == value
    assert parse_number(f"It is {value:,}.") == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_as_python_writes_it(value):
    assert parse_number(repr(value)) == value


@given(st.text(max_size=300))
def test_no_text_makes_the_number_parser_fail(text):
    found = parse_number(text)
    assert found is None or (math.isfinite(found) and any(character.isdigit() for character in text))


def test_numeric_tolerance_is_absolute_and_inclusive():
    assert numeric_match(3.5, [3.0], tolerance=0.5) == 1.0
    assert numeric_match(3.5, [3.0], tolerance=0.25) == 0.0
    assert numeric_match(7.0, [3.0, 7.0]) == 1.0


@pytest.mark.parametrize(
    ("prediction", "target", "right"),
    [
        ("105", "100", True),
        ("95", "100", True),
        ("105.1", "100", False),
        ("94.9", "100", False),
        ("-100", "100", False),
        ("-98", "-100", True),
        # A target of 0 is compared as text.
        ("0", "0", True),
        ("0.0", "0", False),
        ("0.001", "0", False),
        # A percent sign divides by 100, on either side.
        ("12%", "12", False),
        ("12%", "12%", True),
        ("12%", "0.12", True),
        ("0.12", "12%", True),
        ("12%%", "12%", True),
        # Thousands separators and units make a text of a number.
        ("1,000", "1000", False),
        ("1,000", "1,000", True),
        ("5 million", "5", False),
        ("$5", "5", False),
        # Words: lower-cased, and not trimmed.
        ("Yes", "yes", True),
        ("yes ", "yes", False),
        (" 5 ", "5", True),
        ("", "", True),
        ("", "5", False),
        # Python reads these as floats; no answer means them.
        ("Nan", "nan", True),
        ("nan", "5", False),
        ("5", "nan", False),
        ("inf", "inf", True),
        ("1e999", "5", False),
    ],
)
def test_relaxed_accuracy_at_its_boundaries(prediction, target, right):
    assert relaxed_match(prediction, target) == float(right)


def relaxed_as_published(prediction: str, target: str) -> float:
    def number(text):
        try:
            return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
        except ValueError:
            return None

    ours, theirs = number(prediction), number(target)
    if ours is not None and theirs:
        return float(abs(ours - theirs) / abs(theirs) <= 0.05)
    return float(prediction.lower() == target.lower())


NUMBER_LIKE = st.text(alphabet="019.-%, eE", max_size=6)


@given(NUMBER_LIKE, NUMBER_LIKE)
def test_relaxed_accuracy_equals_the_published_formula_on_finite_numbers(prediction, target):
    assert relaxed_match(prediction, target) == relaxed_as_published(prediction, target)
