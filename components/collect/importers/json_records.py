"""JSON, one value at a time: the lines of a jsonl file, or the items of one list that need not fit in memory."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from components.collect.importers.record import Refusal
from components.collect.importers.root import SourceRoot, lines
from model.data.errors import InputError

_FIRST_READ = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")


def jsonl_values(root: SourceRoot, file: str, limit: int) -> Iterator[tuple[str, Any]]:
    """(``file:line``, value) for every line; a ``Refusal`` for one that is too long, not UTF-8, or no JSON."""
    with root.stream(file) as stream:
        for number, line in lines(stream, limit):
            yield f"{file}:{number}", _value(line, limit)


def _value(line: bytes | None, limit: int) -> Any:
    if line is None:
        return Refusal(f"the line has more than {limit} bytes (max_row_bytes)")
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Refusal(f"not UTF-8 at byte {error.start} of the line")
    except ValueError as error:
        return Refusal(f"not JSON: {error}")
    except RecursionError:
        return Refusal("not JSON: nested too deep")


def json_items(root: SourceRoot, file: str, limit: int) -> Iterator[tuple[str, Any]]:
    """(``file#index``, value) for every item of the list in a JSON file.

    Bytes that are no UTF-8 become half surrogates, by which the rows that hold them are refused later.

    Raises:
        InputError: it is no list, or an item is broken: where the next one begins can then not be told.
    """
    with root.stream(file) as stream:
        text = _Text(stream, file, limit)
        if text.peek() != "[":
            raise InputError(f"{file}: not a JSON list")
        index = 0
        while True:
            text.at += 1  # over the bracket or the comma
            if text.peek() == "]" and not index:
                break
            yield f"{file}#{index}", text.value(index)
            index += 1
            if (sign := text.peek()) == "]":
                break
            if sign != ",":
                raise text.broken(index, "',' or ']' expected")
        text.at += 1
        if text.peek():
            raise InputError(f"{file}: more follows after the end of the list")


def json_values(root: SourceRoot, file: str, limit: int) -> Iterator[tuple[str, Any]]:
    """The values of a file, by its ending: lines of ``.jsonl``, items of ``.json``."""
    return (jsonl_values if file.lower().endswith(".jsonl") else json_items)(root, file, limit)


class _Text:
    """A window on a text: what was read, and how far it is consumed."""

    def __init__(self, stream: BinaryIO, file: str, limit: int) -> None:
        self.stream, self.file, self.limit = stream, file, limit
        self.decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self.window, self.at, self.ended = "", 0, False
        self.decoder = json.JSONDecoder()

    def more(self, size: int) -> None:
        """Read about ``size`` signs; what is consumed is forgotten."""
        data = self.stream.read(size)
        self.ended = not data
        self.window, self.at = self.window[self.at :] + self.decode(data, self.ended), 0

    def peek(self) -> str:
        """The next sign that is no white space; empty at the end of the file."""
        while True:
            self.at = _SPACE.match(self.window, self.at).end()
            if self.at < len(self.window) or self.ended:
                return self.window[self.at : self.at + 1]
            self.more(_FIRST_READ)

    def value(self, index: int) -> Any:
        """Decode the next value; reads on, twice as much each time, while it has no end."""
        self.peek()
        size = _FIRST_READ
        while True:
            try:
                value, end = self.decoder.raw_decode(self.window, self.at)
                if end < len(self.window) or self.ended or isinstance(value, dict | list | str):
                    self.at = end
                    return value
            except ValueError as error:
                if self.ended or len(self.window) - self.at > self.limit:
                    raise self.broken(index, str(error)) from None
            except RecursionError:
                raise self.broken(index, "nested too deep") from None
            self.more(size)
            size *= 2

    def broken(self, index: int, why: str) -> InputError:
        """What to say of a list whose items cannot be told apart from here on."""
        return InputError(f"{self.file}: item {index} of the list is broken, or longer than max_row_bytes: {why[:200]}")
