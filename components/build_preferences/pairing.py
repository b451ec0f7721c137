"""Pairs of a chosen and a rejected answer. Imports no torch.

Source: InternVL3.5, section 2.6 and the released data pipeline: every right answer against every wrong one, without
pairs in which the wrong answer holds the right one, at most 15 drawn per query; right answers against malformed ones.
"""

import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Literal, NamedTuple

import numpy as np

from components.build_preferences.config import BuildPreferencesConfig
from components.rollouts import Answer, Outcome
from model.data.schema import NOT_IN_ANSWERS, reserved_word
from scoring.answer_format import final_answer

Kind = Literal["correctness", "format", "dropout"]


class Pair(NamedTuple):
    """Two answers to one query, and what is wrong with the rejected one."""

    kind: Kind
    chosen: str
    rejected: str


def usable(text: str) -> bool:
    """Whether an answer can be trained on: not empty, no word of a chat template, no broken character."""
    return bool(text.strip()) and "\ufffd" not in text and reserved_word(text, NOT_IN_ANSWERS) is None


def entailed(right: str, wrong: str) -> bool:
    """Whether a wrong answer holds the right one: "7 or 8" holds "7".

    The released pipeline looks for any part of a text. Here whole words and numbers count, or the right answer 7 would
    never stand against 17, 70 or 7.5.
    """
    held = " ".join(right.split()).casefold()
    text = " ".join(wrong.split()).casefold()
    pattern = rf"(?<![\w-])(?<!\d[.,]){re.escape(held)}(?!\w)(?![.,]\d)"
    return not held or re.search(pattern, text) is not None


def answer_pairs(row_id: str, answers: Sequence[Answer], config: BuildPreferencesConfig) -> list[Pair]:
    """The pairs of one query: right x wrong first, and if there is room right x malformed; equal texts count once."""
    # Trained on, a cut answer has an end: one that is right as far as it goes would be a wrong negative.
    told = [a for a in answers if a.finish_reason == "stop" or a.score <= config.correct_above]
    right, wrong, malformed = (_texts(told, outcome) for outcome in ("right", "wrong", "malformed"))
    finals = {text: final_answer(text) for text in (*right, *wrong)}
    candidates = [
        Pair("correctness", chosen, rejected)
        for chosen in right
        for rejected in wrong
        if not entailed(finals[chosen], finals[rejected])
    ]
    pairs = _drawn(candidates, config.pairs_per_query, f"{config.seed}\0correctness\0{row_id}")
    if config.format_pairs and len(pairs) < config.pairs_per_query:
        candidates = [Pair("format", chosen, rejected) for chosen in right for rejected in malformed]
        pairs += _drawn(candidates, config.pairs_per_query - len(pairs), f"{config.seed}\0format\0{row_id}")
    return pairs


def dropout_pair(original: str, answers: Sequence[Answer]) -> list[Pair]:
    """The original answer against the one that was continued without the image, where it went another way."""
    found = (answer.text for answer in answers if answer.outcome == "continued")
    return [Pair("dropout", original, text) for text in found if text.strip() != original.strip() and usable(text)]


def why_no_pairs(answers: Sequence[Answer]) -> str:
    """Why a query gave no pair, in words."""
    if any(answer.outcome == "continued" for answer in answers):
        return "the continuation without the image is the original answer, or cannot be trained on"
    counts = {outcome: sum(answer.outcome == outcome for answer in answers) for outcome in ("right", "wrong")}
    if counts["right"] == len(answers):
        return f"all {len(answers)} answers are right"
    if not counts["right"]:
        return f"none of {len(answers)} answers is right"
    return f"{counts['right']} of {len(answers)} answers are right, but no two of them make a pair"


def _texts(answers: Sequence[Answer], outcome: Outcome) -> list[str]:
    found = dict.fromkeys(answer.text for answer in answers if answer.outcome == outcome)
    return [text for text in found if usable(text)]


def _drawn(candidates: list[Pair], count: int, key: str) -> list[Pair]:
    """At most ``count`` of them in their order, drawn by a generator of the query's own."""
    if len(candidates) <= count:
        return candidates
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(sha256(key.encode()).digest()[:16], "little")))
    return [candidates[index] for index in sorted(generator.choice(len(candidates), count, replace=False))]
