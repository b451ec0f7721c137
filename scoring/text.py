"""Scorers of text answers: exact match, and ANLS as a similarity."""

import unicodedata
from collections.abc import Sequence


def normalise(text: str) -> str:
    """Unicode NFKC, case folded, outer white space removed, inner runs of white space made one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 when the normalised prediction equals a normalised reference, else 0.0."""
    return float(normalise(prediction) in {normalise(answer) for answer in answers})


def levenshtein(first: str, second: str) -> int:
    """Edit distance (insertion, deletion, substitution cost 1 each) in code points.

    Bit-parallel (Myers 1999 with Hyyroe's 2001 simplification): one step per character of ``second``, the column
    of the dynamic-programming table over ``first`` held as two bit vectors of its +1 and -1 differences.
    """
    if not first:
        return len(second)
    matches: dict[str, int] = {}
    for index, character in enumerate(first):
        matches[character] = matches.get(character, 0) | 1 << index
    mask = (1 << len(first)) - 1
    last = 1 << (len(first) - 1)
    increases, decreases, distance = mask, 0, len(first)
    for character in second:
        match = matches.get(character, 0)
        zero_diagonal = (((match & increases) + increases) ^ increases) | match | decreases
        horizontal_up = decreases | ~(zero_diagonal | increases)
        horizontal_down = increases & zero_diagonal
        if horizontal_up & last:
            distance += 1
        elif horizontal_down & last:
            distance -= 1
        # The row above the table grows by one per column: the shifted-in 1.
        horizontal_up = (horizontal_up << 1) | 1
        increases = ((horizontal_down << 1) | ~(zero_diagonal | horizontal_up)) & mask
        decreases = horizontal_up & zero_diagonal & mask
    return distance


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one answer, in [0, 1]: 1 for equal strings.

    As the public DocVQA harnesses compute it: strings are lower-cased, trimmed, and their white space collapsed
    before the edit distance, which is divided by the longer of the two *raw* strings (0 when both are empty);
    the best reference counts; a similarity below ``threshold`` is 0, one exactly at it is kept.
    """
    return max((_similarity(prediction, answer, threshold) for answer in answers), default=0.0)


def _similarity(prediction: str, answer: str, threshold: float) -> float:
    longest = max(len(prediction), len(answer))
    if longest == 0:
        return 1.0
    ours, theirs = (" ".join(text.lower().split()) for text in (prediction, answer))
    # The distance is at least the difference in length: hopeless pairs cost nothing.
    if abs(len(ours) - len(theirs)) > longest * (1 - threshold) + 1:
        return 0.0
    similarity = 1 - levenshtein(ours, theirs) / longest
    return similarity if similarity >= threshold else 0.0
