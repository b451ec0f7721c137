"""The ``math`` scorer: whether two mathematical expressions are equal, by math-verify (sympy, and a LaTeX grammar).

Equal means equal in value: 1/2, 0.5 and 50 per cent, 2(x+1) and 2x+2, sets in any order. The library evaluates what a
model wrote, which may take for ever: it runs in the processes of ``scoring.judge`` only.
"""

import json
from collections.abc import Sequence
from typing import Any

from scoring.answer_format import answer_text, boxed_answer
from scoring.score import UNPARSED, Score

_MAX_TEXT = 4096


def load_library() -> Any:
    """The module ``math_verify``.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import math_verify
    except ModuleNotFoundError as error:
        raise ValueError(f"math: the package math-verify is not installed ({error})") from error
    return math_verify


def score_math(name: str, parameters: str, prediction: str, answers: Sequence[str]) -> Score:
    """As ``scoring.score.score_answer`` for ``math``: right when the expression equals a reference.

    Read is what the last box holds, else the last expression in the text after the thoughts; over 4,096 characters it
    is unparsed.

    Raises:
        ValueError: the library is missing, parameters are given, or a reference is no expression.
    """
    library = load_library()
    if not answers:
        raise ValueError(f"{name}: there is no reference answer")
    if json.loads(parameters or "{}"):
        raise ValueError("scorer parameters: math has none")
    references = [_parsed(library, answer, whole=True) for answer in answers]
    if [] in references:
        raise ValueError(f"{name}: cannot read the reference {answers[references.index([])]!r}")
    expression = _parsed(library, prediction, whole=False)
    if not expression:
        return UNPARSED
    verify = library.verify
    equal = any(verify(reference, expression, timeout_seconds=None, raise_on_error=True) for reference in references)
    return Score(float(equal))


def _parsed(library: Any, text: str, *, whole: bool) -> list[Any]:
    """What the library reads: [] of nothing. With ``whole``, text without a box is an expression as it stands."""
    boxed = boxed_answer(text)
    if boxed is None and whole:
        boxed = text
    source = answer_text(text) if boxed is None else rf"\boxed{{{boxed}}}"
    if len(source) > _MAX_TEXT:
        return []
    # No time limit of the library's own: it is an alarm that a C function may outlast, and a worker has a better one.
    return library.parse(source, parsing_timeout=None)
