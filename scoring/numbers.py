"""Scorers of numeric answers: one number in the text, and ChartQA's relaxed accuracy."""

import math
import re
from collections.abc import Sequence

_SEPARATORS = re.compile(r"[\s()\[\]{}=:;*\"']+")
_NUMBER = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?%?")
_MINUS_SIGN = "\u2212"
_MAX_TEXT = 4096


def parse_number(text: str) -> float | None:
    """The number that ``text`` states, or None when it states none, or several that differ.

    A number is a word of its own: "there are 3." states 3, "3cm", "1.2.3" and "3-4" state nothing. Thousands
    separators are read ("1,234"), a percent sign divides by 100. Texts over 4,096 characters state nothing.
    """
    if len(text) > _MAX_TEXT:
        return None
    words = _SEPARATORS.split(text.replace(_MINUS_SIGN, "-").replace(" %", "%"))
    stripped = (word.rstrip(".,!?") for word in words)
    values = {_value(word) for word in stripped if _NUMBER.fullmatch(word)}
    if len(values) != 1 or not math.isfinite(value := values.pop()):
        return None
    return value


def _value(number: str) -> float:
    plain = number.replace(",", "")
    return float(plain[:-1]) / 100 if plain.endswith("%") else float(plain)


def numeric_match(value: float, references: Sequence[float], tolerance: float = 0.0) -> float:
    """1.0 when ``value`` is within ``tolerance`` (absolute) of a reference, else 0.0."""
    return float(any(abs(value - reference) <= tolerance for reference in references))


def relaxed_match(prediction: str, target: str, tolerance: float = 0.05) -> float:
    """ChartQA's relaxed accuracy of one answer: 1.0 or 0.0 (ChartQA, section 5.1; the public harnesses).

    When both are numbers ("12%" is 0.12) and the target is not 0, the relative error must be at most ``tolerance``;
    otherwise the lower-cased strings must be equal. So "0.0" is not "0", "12%" is not "12", and numbers with
    thousands separators or units are text. One deviation: "nan" and "inf" are text here, so that such a name can
    be answered rightly.
    """
    ours, theirs = _relaxed_number(prediction), _relaxed_number(target)
    if ours is not None and theirs:
        return float(abs(ours - theirs) / abs(theirs) <= tolerance)
    return float(prediction.lower() == target.lower())


def _relaxed_number(text: str) -> float | None:
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
