"""Multiple choice: which option an answer names, without guessing.

The public harnesses read "Best answer: C" as B and "A man walks. D" as A, take the last of several letters, and draw a
random one when they find none. Here the first rule below that finds anything decides, and only if all that it finds
is one letter; else the answer is unparsed:

1. the whole answer is a letter, or the text of an option;
2. a letter that is announced ("the answer is C", "best option: C"), that labels text ("C. a cat"), that has a line
   of its own, or that ends the answer after a full stop ("A man walks. C");
3. a letter in brackets ("it must be (C)");
4. a capital letter that stands alone (not the article "A", not the pronoun "I", not "not C"), or the text of an option.
"""

import re
import string
from collections.abc import Iterator, Sequence

from scoring.text import normalise

_MAX_TEXT = 4096
_WRAPPING = " \t\r\n.,:;!?*_`\"'()[]{}<>"
_MARKS = r"[\s*_\"'(\[{:=]*"
_ANNOUNCED = (
    r"\b(?i:answer|choose|select|pick|(?:best|correct|right|final|chosen)\s+(?:option|choice)|(?:option|choice)(?=\s*[:=]))"
    r"(?i:\s+(?:option|choice))?(?i:\s*:?\s*\b(?:is|was|would be|should be|must be))?(?i:\s+(?:option|choice))?"
)
# "A" and "I" are words too. They are letters when nothing follows, or one of these does ("A because ...").
_NOT_A_WORD = r"(?![\w'])(?!\s+(?!(?i:because|since|as|and|or|is|was|due|for|which|so|but)\b)\w)"
_NEGATED = r"(?i:\b(?:not|nor|neither|except)\s+(?:(?:option|choice|answer)\s+)?)"


def parse_choice(text: str, letters: str = "ABCD", options: Sequence[str] = ()) -> str | None:
    """The letter that ``text`` chooses, or None when it names none, or more than one.

    Args:
        text: the answer; over 4,096 characters it names nothing.
        letters: the letters on offer, capitals.
        options: the texts of the options, in the order of ``letters``; may be empty.

    Raises:
        ValueError: ``letters`` are not distinct capitals, or ``options`` are given and do not fit them.
    """
    if not letters or len(set(letters)) != len(letters) or not set(letters) <= set(string.ascii_uppercase):
        raise ValueError(f"letters must be distinct capitals, not {letters!r}")
    if options and len(options) != len(letters):
        raise ValueError(f"{len(options)} options for the letters {letters!r}")
    if len(text) > _MAX_TEXT:
        return None
    for found in _rules(text, letters, options):
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _rules(text: str, letters: str, options: Sequence[str]) -> Iterator[set[str]]:
    """What each rule of the module's list finds, in their order."""
    # One blank or line break for each run of white space: the patterns below would try every way to share a long one.
    text = re.sub(r"\s+", lambda run: "\n" if "\n" in run.group() else " ", text.strip())
    whole = text.strip(_WRAPPING).upper()
    equal = {letter for letter, option in zip(letters, options, strict=False) if normalise(option) == normalise(text)}
    yield equal or ({whole} & set(letters))
    either_case = f"[{letters}{letters.lower()}]"
    labels = re.findall(rf"(?<!\S)[*_]*({either_case})[.:)][*_]*\s(?=\S)", text)
    lines = {line.strip(_WRAPPING) for line in text.splitlines()} & set(letters)
    ending = re.findall(rf"[.!?:]{_MARKS}(?<!\w)([{letters}])[\s.*_\"')\]}}]*$", text)
    yield {letter.upper() for letter in (*_announced(text, letters), *labels, *lines, *ending)}
    yield {letter.upper() for letter in re.findall(rf"[(\[]({either_case})[)\]]", text)}
    yield _mentioned(text, letters, options)


def _announced(text: str, letters: str) -> Iterator[str]:
    """Letters after "answer" and the like; of "A or B", both."""
    letter = rf"{_letter_pattern(letters)}|[{letters.lower()}]{_NOT_A_WORD}"
    another = rf"(?:[\s)\]*\"']*(?:\b(?:or|and)\b|[/&,])[\s(\[*\"']*({letter}))?"
    for match in re.finditer(rf"{_ANNOUNCED}{_MARKS}(?<!\w)({letter}){another}", text):
        yield from filter(None, match.groups())


def _letter_pattern(letters: str) -> str:
    """A capital of ``letters`` that does not read as a word."""
    plain = "".join(letter for letter in letters if letter not in "AI")
    words = "".join(letter for letter in letters if letter in "AI")
    patterns = [rf"[{plain}](?![\w'])"] * bool(plain) + [rf"[{words}]{_NOT_A_WORD}"] * bool(words)
    return f"(?:{'|'.join(patterns)})"


def _mentioned(text: str, letters: str, options: Sequence[str]) -> set[str]:
    """Options named by their text (the longest first, each taken out of the text), and letters that stand alone."""
    found = set()
    for option, letter in sorted(zip(options, letters, strict=False), key=lambda pair: -len(pair[0])):
        text, count = re.subn(rf"(?<!\w){re.escape(option.strip())}(?!\w)", " , ", text, flags=re.IGNORECASE)
        if count and option.strip():
            found.add(letter)
    text = re.sub(rf"{_NEGATED}[{letters}](?!\w)", " , ", text)
    return found | set(re.findall(rf"(?<![\w'.-])({_letter_pattern(letters)})(?!-)", text))
