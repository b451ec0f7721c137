r"""What an answer is worth: right, wrong, malformed, or unjudged.

A row asks for thoughts when a system or user turn names ``<think>``, and for a box when one names ``\boxed``, as the
published prompts do (InternVL3.5, section 2.6: prompt versions en_v2 and en_r1).
"""

from collections.abc import Sequence

from components.build_preferences.queries import request, texts
from components.rollouts import Answer, Outcome
from model.data.errors import InputError
from model.data.schema import Row
from model.training.rollout import Response
from scoring.answer_format import THINK_END, THINK_START, boxed_answer, has_format
from scoring.judge import Judges, Verdict

_SHORTEST_THOUGHT = 20
"""Characters; the released check asks for more."""


def keeps_format(row: Row, text: str) -> bool:
    """Whether an answer has the format that its row asks for; every answer has where it asks for none."""
    asked = texts(row["messages"])
    box, thoughts = "\\boxed" in asked, THINK_START in asked
    if thoughts:
        begun = text.startswith(THINK_START) and text.count(THINK_START) == text.count(THINK_END) == 1
        thought, _, answer = text.removeprefix(THINK_START).partition(THINK_END)
        if not begun or len(thought.strip()) <= _SHORTEST_THOUGHT or not answer.strip():
            return False
        return has_format(text) if box else True
    return boxed_answer(text) is not None if box else True


def judge(
    rows: Sequence[Row], groups: Sequence[Sequence[Response]], judges: Judges, correct_above: float
) -> list[list[Answer]]:
    """Answers with their outcomes, in order. A scorer that raises or hangs costs the one answer.

    Raises:
        InputError: names the row whose scorer, parameters or references are unusable.
    """
    asked = [(row, response) for row, group in zip(rows, groups, strict=True) for response in group]
    verdicts = judges.ask([request(row, response.text) for row, response in asked])
    for (row, _), verdict in zip(asked, verdicts, strict=True):
        if verdict.fault:
            raise InputError(f"row {row['id']!r}: {verdict.fault}")
    judged = iter(
        _answer(response, verdict, _outcome(row, response, verdict, correct_above))
        for (row, response), verdict in zip(asked, verdicts, strict=True)
    )
    return [[next(judged) for _ in group] for group in groups]


def _outcome(row: Row, response: Response, verdict: Verdict, correct_above: float) -> Outcome:
    if verdict.failed:
        return "failed"
    if response.finish_reason != "stop" or not verdict.parsed or not keeps_format(row, response.text):
        return "malformed"
    return "right" if verdict.value > correct_above else "wrong"


def _answer(response: Response, verdict: Verdict, outcome: Outcome) -> Answer:
    tokens = len(response.token_ids)
    return Answer(response.text, tokens, response.finish_reason, verdict.value, outcome, verdict.failed)
