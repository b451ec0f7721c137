"""``redact_pii``: personal data by its form, replaced by what it was in every text of a row.

A form is recognised only where it is unlikely to be anything else: card numbers pass Luhn's check, IBANs theirs
(ISO 13616), IP addresses are in range, and a telephone number has a country code, the North American form, or a word
such as "call" before it. So boxes, dates and sums of digits stay.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any

import daft
from daft import DataType, Expression, Series, col

from components.curate.recipe import RedactPii
from model.data.schema import ROW_SCHEMA

PLACES = {"email": "[EMAIL]", "iban": "[IBAN]", "card": "[CARD]", "ip": "[IP]", "phone": "[PHONE]"}
"""What stands where personal data stood, by kind."""

_EMAIL = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?\.[A-Za-z]{2,24}\b"
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.]?\d)")
_IP = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})(?![\w:]|\.\d)")
_PHONE = re.compile(
    r"(?<![\w+])\+\d{1,3}(?:[ .\-/]?\(?\d{1,5}\)?){2,6}(?!\d)"
    r"|(?<![\w(.-])(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}(?![\d.-]*\d)"
    r"|(?i:\b(?:tel|telephone|phone|call|fax|mobile|cell)\b[.:]? {0,2})"
    r"(?P<number>\(?\d(?:[ .\-/()]{0,2}\d){6,14})(?!\d)"
)
_COLUMNS = ("messages", "answers", "chosen", "rejected", "steps", "words")


def redact_pii(section: RedactPii) -> Expression:
    """Replace personal data; fact ``redacted``, how many pieces of it the row held."""
    return _redact(*(col(name) for name in _COLUMNS), col("reason"), section)


def redact(text: str, kinds: tuple[str, ...]) -> tuple[str, int]:
    """The text with every piece of personal data replaced, and the number of pieces."""
    count = 0
    for kind in kinds:
        pattern, check = _FORMS[kind]

        def replaced(match: re.Match[str], kind: str = kind, check: Callable[[str], bool] = check) -> str:
            nonlocal count
            number = match.groupdict().get("number")
            if not check(number or match.group()):
                return match.group()
            count += 1
            return match.group()[: len(match.group()) - len(number)] + PLACES[kind] if number else PLACES[kind]

        text = pattern.sub(replaced, text)
    return text, count


def luhn(number: str) -> bool:
    """Luhn's check of the digits of a card number (ISO/IEC 7812-1, annex B)."""
    digits = [int(character) for character in number if character.isdigit()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1


def iban(number: str) -> bool:
    """The check digits of an IBAN: the number, its first four characters last, is 1 modulo 97 (ISO 13616, ISO 7064)."""
    compact = number.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def _ip(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    # "::" and the like are punctuation more often than addresses.
    return address.version == 4 or len(address.compressed) > 4


def _phone(text: str) -> bool:
    return 7 <= sum(character.isdigit() for character in text) <= 15


_FORMS: Mapping[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "email": (_EMAIL, lambda _: True),
    "iban": (_IBAN, iban),
    "card": (_CARD, luhn),
    "ip": (_IP, _ip),
    "phone": (_PHONE, _phone),
}


def _column(name: str) -> DataType:
    return DataType.from_arrow_type(ROW_SCHEMA.field(name).type)


@daft.func.batch(
    return_dtype=DataType.struct(
        {"reason": DataType.string(), "redacted": DataType.int64()} | {name: _column(name) for name in _COLUMNS}
    ),
    use_process=False,
)
def _redact(
    messages: Series,
    answers: Series,
    chosen: Series,
    rejected: Series,
    steps: Series,
    words: Series,
    reason: Series,
    section: RedactPii,
) -> list[dict[str, Any]]:
    lists = [column.to_pylist() for column in (messages, answers, chosen, rejected, steps, words, reason)]
    return [_redacted(dict(zip((*_COLUMNS, "reason"), row, strict=True)), section) for row in zip(*lists, strict=True)]


def _redacted(row: dict[str, Any], section: RedactPii) -> dict[str, Any]:
    """The changed columns of a row; null for those that stay."""
    result: dict[str, Any] = dict.fromkeys(("reason", "redacted", *_COLUMNS))
    if row["reason"] is not None:
        return result
    result["redacted"] = 0
    for name in _COLUMNS:
        value, count = _walk(row[name], section.kinds)
        if count:
            result[name] = value
            result["redacted"] += count
    for answer in result["answers"] or ():
        bare = answer
        for place in PLACES.values():
            bare = bare.replace(place, "")
        if not any(character.isalnum() for character in bare) and bare != answer:
            result["reason"] = f"the accepted answer is personal data ({answer[:40]})"
            break
    return result


def _walk(value: Any, kinds: tuple[str, ...]) -> tuple[Any, int]:
    """Redact every string in a value of lists and records, but no role."""
    if isinstance(value, str):
        return redact(value, kinds)
    if isinstance(value, list):
        parts = [_walk(item, kinds) for item in value]
        return [part for part, _ in parts], sum(count for _, count in parts)
    if isinstance(value, dict):
        walked = {name: (item, 0) if name == "role" else _walk(item, kinds) for name, item in value.items()}
        return {name: part for name, (part, _) in walked.items()}, sum(count for _, count in walked.values())
    return value, 0
