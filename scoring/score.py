r"""One entry to every scorer: a row names its scorer and carries its parameters as a JSON object.

============== ==================================== ==========================================================
scorer         parameters (default)                 right when
============== ==================================== ==========================================================
exact          after (none)                         the normalised strings are equal
numeric        tolerance (0), after (none)          the one number in the answer is a reference, +- tolerance
anls           threshold (0.5)                      value is the similarity itself, 0 below the threshold
relaxed        tolerance (0.05)                     ChartQA: within 5 % of the reference, or equal text
box_iou        threshold (0.5)                      IoU with a reference is at least the threshold
point_in_box                                        the point, or the middle of the box, lies in a reference box
page_html      threshold (0.5)                      value is the share of a page's elements, in order, with equal
                                                    text and a box whose IoU is at least the threshold
multiple_choice letters ("ABCD"), options (none)    the one letter that the answer chooses is a reference
math                                                the expression has the value of a reference (scoring.math_answer)
============== ==================================== ==========================================================

Thoughts are never scored, and where the answer stands in a ``\boxed{}``, what it holds is the answer
(scoring.answer_format). References that hold thoughts or boxes themselves are compared with the text as it stands, and
``page_html`` opens no box: a page may show one.

With ``after``, the answer is what follows the last such text: of "3 + 7 = 10", after "=", it is "10". Where the text
does not occur, the whole is the answer.

An answer that cannot be read as what the scorer needs is wrong (value 0) and says so (parsed False). To ``exact``,
``anls`` and ``relaxed`` every answer is readable.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from scoring.answer_format import THINK_END, THINK_START, answer_text, boxed_answer, unwrapped
from scoring.boxes import box_hit, format_box, parse_box, parse_point, point_hit
from scoring.choice import parse_choice
from scoring.judge import Request, shared_judges
from scoring.numbers import numeric_match, parse_number, relaxed_match
from scoring.pages import page_match, parse_page
from scoring.text import anls, exact_match

# Candidates for the best constant answer of one family: its most frequent references.
MAX_CONSTANTS = 500

_MAX_TOLERANCE = 1e12
_BOX = r"\boxed"
_BOXED = ("box_iou", "point_in_box")
_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class Score:
    """``value`` in [0, 1]; ``parsed`` False when the answer could not be read (then the value is 0)."""

    value: float
    parsed: bool = True


@dataclass(frozen=True)
class ConstantAnswer:
    """The best answer that looks at nothing, and its mean score over the rows of one family."""

    answer: str
    score: float


UNPARSED = Score(0.0, parsed=False)


def score_answer(name: str, parameters: str, prediction: str, answers: Sequence[str]) -> Score:
    """Score ``prediction`` against the references ``answers`` with the scorer ``name`` (see the module's table).

    Args:
        parameters: a JSON object, as a row's ``scorer.parameters`` holds it; "" is the same as "{}".

    Raises:
        ValueError: unknown scorer, unknown or unusable parameter, no reference, or a reference that the scorer itself
            cannot read. These are faults of the row, never of the answer.
    """
    if not answers:
        raise ValueError(f"{name}: there is no reference answer")
    if name == "math":
        return _score_math(parameters, prediction, answers)
    prediction = _answer(name, prediction, answers)
    match name:
        case "exact":
            return Score(exact_match(_final(prediction, _settings(parameters, after="")["after"]), answers))
        case "numeric":
            settings = _settings(parameters, tolerance=0.0, after="")
            references = [_reference(name, parse_number(answer), answer) for answer in answers]
            number = parse_number(_final(prediction, settings["after"]))
            return UNPARSED if number is None else Score(numeric_match(number, references, settings["tolerance"]))
        case "anls":
            return Score(anls(prediction, answers, _settings(parameters, threshold=0.5)["threshold"]))
        case "relaxed":
            tolerance = _settings(parameters, tolerance=0.05)["tolerance"]
            return Score(max(relaxed_match(prediction, answer, tolerance) for answer in answers))
        case "box_iou":
            threshold = _settings(parameters, threshold=0.5)["threshold"]
            references = [_reference(name, parse_box(answer), answer) for answer in answers]
            box = parse_box(prediction)
            return UNPARSED if box is None else Score(box_hit(box, references, threshold))
        case "point_in_box":
            _settings(parameters)
            references = [_reference(name, parse_box(answer), answer) for answer in answers]
            point = parse_point(prediction)
            return UNPARSED if point is None else Score(point_hit(point, references))
        case "page_html":
            threshold = _settings(parameters, threshold=0.5)["threshold"]
            pages = [_reference(name, parse_page(answer), answer) for answer in answers]
            page = parse_page(prediction)
            return UNPARSED if page is None else Score(max(page_match(page, other, threshold) for other in pages))
        case "multiple_choice":
            return _score_choice(_settings(parameters, letters=None, options=()), prediction, answers)
        case _:
            raise ValueError(f"unknown scorer {name!r}")


def best_constant(rows: Iterable[Mapping[str, Any]]) -> dict[str, ConstantAnswer]:
    """For each family (``task``) the constant answer that scores best, judged by each row's own scorer.

    Candidates are the family's references (its 500 most frequent), and for boxes also their mean and median.
    Ties go to the more frequent, then to the first seen.

    Args:
        rows: mappings with ``task``, ``answers`` and ``scorer`` {``name``, ``parameters``}.

    Raises:
        ValueError: as in ``score_answer``.
    """
    families: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["task"], []).append(row)
    return {family: _best_of(members) for family, members in families.items()}


def _best_of(rows: Sequence[Mapping[str, Any]]) -> ConstantAnswer:
    counts = Counter(answer for row in rows for answer in dict.fromkeys(row["answers"]))
    candidates = [answer for answer, _ in counts.most_common(MAX_CONSTANTS)]
    boxes = [parse_box(row["answers"][0]) for row in rows if row["scorer"]["name"] in _BOXED]
    if readable := [box for box in boxes if box is not None]:
        candidates += [format_box(np.mean(readable, axis=0)), format_box(np.median(readable, axis=0))]
    scored = (ConstantAnswer(candidate, _mean_score(candidate, rows)) for candidate in candidates)
    return max(scored, key=lambda constant: constant.score)


def _mean_score(candidate: str, rows: Sequence[Mapping[str, Any]]) -> float:
    scores = (score_answer(r["scorer"]["name"], r["scorer"]["parameters"], candidate, r["answers"]) for r in rows)
    return math.fsum(score.value for score in scores) / len(rows)


def _score_choice(settings: Mapping[str, Any], prediction: str, answers: Sequence[str]) -> Score:
    options = settings["options"]
    letters = settings["letters"] or ("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)] if options else "ABCD")
    if unknown := [answer for answer in answers if answer.strip() not in list(letters)]:
        raise ValueError(f"multiple_choice: the reference {unknown[0]!r} is not one of the letters {letters}")
    choice = parse_choice(prediction, letters, options)
    return UNPARSED if choice is None else Score(float(choice in {answer.strip() for answer in answers}))


def _score_math(parameters: str, prediction: str, answers: Sequence[str]) -> Score:
    """In a process of its own: an expression may take for ever, and then it is not read."""
    verdict = shared_judges().ask([Request("math", parameters, prediction, list(answers))])[0]
    if verdict.fault is not None:
        raise ValueError(verdict.fault)
    return Score(verdict.value, verdict.parsed)


def _answer(name: str, text: str, references: Sequence[str]) -> str:
    """The final answer in ``text``; see the module's text for what stays as it is."""
    if _BOX not in text and THINK_START not in text and THINK_END not in text:
        return text
    if any(tag in reference for reference in references for tag in (THINK_START, THINK_END)):
        return text
    closed = name == "page_html" or any(_BOX in reference for reference in references)
    boxed = None if closed else boxed_answer(text)
    if boxed is None:
        return answer_text(text)
    # References in LaTeX are compared with LaTeX.
    return boxed.strip() if any("\\" in reference for reference in references) else unwrapped(boxed)


def _final(text: str, after: str) -> str:
    """What follows the last ``after`` in ``text``; all of it where there is none."""
    return text.rsplit(after, 1)[-1] if after else text


def _reference(name: str, parsed: _Parsed | None, answer: str) -> _Parsed:
    if parsed is None:
        raise ValueError(f"{name}: cannot read the reference {answer!r}")
    return parsed


def _settings(parameters: str, **defaults: Any) -> dict[str, Any]:
    """The parameters of a row over the ``defaults``, which are all that the scorer knows."""
    given = _parse_parameters(parameters)
    if unknown := sorted(set(given) - set(defaults)):
        raise ValueError(f"scorer parameters: unknown key {unknown[0]!r}")
    return defaults | given


@lru_cache(maxsize=1024)
def _parse_parameters(parameters: str) -> dict[str, Any]:
    try:
        given = json.loads(parameters or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError("scorer parameters: not JSON") from error
    if not isinstance(given, dict):
        raise ValueError("scorer parameters: not a JSON object")
    for key, value in given.items():
        if not _usable(key, value):
            raise ValueError(f"scorer parameters: unusable value {value!r} for {key}")
    return given


def _usable(key: str, value: Any) -> bool:
    match key:
        case "tolerance" | "threshold":
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and 0 <= value <= (1 if key == "threshold" else _MAX_TOLERANCE)
        case "letters" | "after":
            return isinstance(value, str)
        case "options":
            return isinstance(value, list) and all(isinstance(option, str) for option in value)
        case _:
            return True
