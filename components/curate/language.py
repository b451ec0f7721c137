"""``languages``: rows in an allowed language, as py3langid tells it from all texts of a row together."""

import functools
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import daft
from daft import DataType, Expression, Series, col

from components.curate.model_sections import Languages
from model.data.errors import InputError
from model.data.schema import PLACEHOLDERS

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_LOADING = threading.Lock()
_FOUND = DataType.struct(
    {"reason": DataType.string(), "language": DataType.string(), "language_probability": DataType.float64()}
)


class Guess(NamedTuple):
    """A language (ISO 639-1) and its probability among all that the model knows."""

    language: str
    probability: float


def languages(section: Languages) -> Expression:
    """Why a row is in the wrong language. Facts ``language`` and ``language_probability``, null for short texts.

    Raises:
        InputError: ``section.allowed`` names a language that the model does not know.
    """
    if unknown := sorted(set(section.allowed) - known_languages()):
        raise InputError(f"recipe: languages: allowed: {unknown[0]!r} is not a language that py3langid knows")
    return _judge(col("messages"), col("reason"), section)


def said(messages: list[dict[str, Any]]) -> str:
    """The contents of all messages, a line each, without placeholders of media and without white space at the ends."""
    texts = []
    for message in messages:
        text = message["content"]
        for placeholder in PLACEHOLDERS.values():
            text = text.replace(placeholder, " ")
        texts.append(text.strip())
    return "\n".join(text for text in texts if text)


def identify(text: str) -> Guess:
    """The likeliest language of a text (naive Bayes on byte sequences; Lui and Baldwin 2012)."""
    language, probability = _identifier().classify(text)
    return Guess(language, round(float(probability), 6))


def judge(text: str, section: Languages) -> tuple[str | None, Guess | None]:
    """Why ``text`` is refused (None: it is not), and its language where it has enough letters to tell."""
    if sum(character.isalpha() for character in text) < section.min_letters:
        return None, None
    guess = identify(text)
    if guess.probability < section.min_probability:
        return (
            f"{guess.language} is likeliest with {guess.probability:.2f}; the least is {section.min_probability}",
            guess,
        )
    if guess.language not in section.allowed:
        return f"{guess.language} ({guess.probability:.2f}) is not allowed", guess
    return None, guess


@functools.cache
def known_languages() -> frozenset[str]:
    """Codes of the languages that can be told."""
    return frozenset(_identifier().labels)


def _identifier() -> "LanguageIdentifier":
    with _LOADING:
        return _load()


@functools.cache
def _load() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@daft.func.batch(return_dtype=_FOUND, use_process=False)
def _judge(messages: Series, reason: Series, section: Languages) -> list[dict[str, Any]]:
    found = []
    for turns, earlier in zip(messages.to_pylist(), reason.to_pylist(), strict=True):
        why, guess = (None, None) if earlier is not None else judge(said(turns), section)
        language, probability = guess or (None, None)
        found.append({"reason": why, "language": language, "language_probability": probability})
    return found
