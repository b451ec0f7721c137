"""Records to rows: who is held out, which id a row gets, what is loaded, what is refused.

Every record ends as rows or as a reject: in one pass for the held-out rows and one for the others, each of which loads
the media of its own rows only.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from components.collect.importers.config import AnySource
from components.collect.importers.detect import detect
from components.collect.importers.formats import default_task, read_records
from components.collect.importers.media import load_media
from components.collect.importers.record import HELDOUT_NAMES, TRAIN_NAMES, Record, Refusal
from components.collect.importers.root import SourceRoot
from model.data.errors import InputError
from model.data.schema import Message, Reject, Row, check_row, scorer
from scoring.score import score_answer

STEP = "collect"
PRETRAIN_TASK = "pretrain"
_REASON_SIGNS = 300
_ALWAYS, _NEVER = -1.0, 2.0  # beyond the numbers that hashes give
_MOST_TRIED = 4096
_ID_SIGNS = 1000


class Ids:
    """The ids that are taken, in 8 bytes each: a set of texts would be the largest thing in memory.

    Two ids collide with a chance of 1e-5 among 20 million; the second row then gets its place as a suffix.
    """

    def __init__(self) -> None:
        self._settled = np.empty(0, np.uint64)
        self._recent: set[int] = set()

    def take(self, name: str) -> bool:
        """Take an id; False if it was taken before."""
        number = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest(), "big")
        place = int(np.searchsorted(self._settled, np.uint64(number)))
        if number in self._recent or (place < len(self._settled) and int(self._settled[place]) == number):
            return False
        self._recent.add(number)
        if len(self._recent) > max(1 << 16, len(self._settled) >> 2):
            recent = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._settled = np.sort(np.concatenate([self._settled, recent]))
            self._recent.clear()
        return True


class _Lowest:
    """The lowest of many numbers in [0, 1), at most ``count`` different ones."""

    def __init__(self, count: int) -> None:
        self.numbers: set[float] = set()
        self._count, self._highest = count, -1.0

    def add(self, number: float) -> None:
        """Look at one more."""
        if not 0 <= number < 1 or number in self.numbers:
            return
        if len(self.numbers) == self._count:
            if number > self._highest:
                return
            self.numbers.remove(self._highest)
        self.numbers.add(number)
        self._highest = max(self.numbers)


@dataclass
class Importer:
    """One source, ready to be read.

    Attributes:
        config: the source, its format decided.
        found: the format and the files that decided it, in words.
        notes: what the source says and no row holds (``data_augment`` of a set).
        counts: records, repetitions and rows, filled by the passes.
    """

    config: AnySource
    found: str
    root: SourceRoot
    notes: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: {"records": 0, "repeated": 0})
    _ids: Ids = field(default_factory=Ids)
    _threshold: float = 0.0

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest of a dataset says about its source; the passes go on filling it."""
        return {"source": {"found": self.found, "counts": self.counts, "notes": self.notes}}

    def heldout(self, rejects: list[Reject]) -> Iterator[Row]:
        """The held-out rows; call it before ``train``. Rejected ones of them go to ``rejects``.

        Raises:
            InputError: the source is empty, damaged, or has gone; or no row is held out.
        """
        low, high, wanted = _ALWAYS, self.config.heldout_share, 64
        while True:
            kept, beyond = 0, _Lowest(wanted)
            for record in self._records():
                self.counts["records"] += low == _ALWAYS
                number = self._number(record)
                if number >= high:
                    beyond.add(number)
                elif number >= low:
                    for row in self._made(record, True, rejects):
                        kept += 1
                        yield row
            self._threshold = high
            if kept or not beyond.numbers or wanted > _MOST_TRIED:
                break
            # A small source, or many broken records: the sound one that comes first is held out.
            low, high, wanted = high, float(np.nextafter(self._first_sound(beyond.numbers), _NEVER)), wanted * 2
        self._require("held-out", kept, rejects)

    def _first_sound(self, numbers: set[float]) -> float:
        """The lowest of ``numbers`` whose record is a row; the highest when none is."""
        best = max(numbers)
        for record in self._records():
            number = self._number(record)
            if number in numbers and number < best:
                with suppress(Refusal):
                    self._row(record, record.place, True)
                    best = number
        return best

    def train(self, rejects: list[Reject]) -> Iterator[Row]:
        """All other rows. Records that cannot be read at all go to these ``rejects``.

        Raises:
            InputError: the source is damaged, has gone, or changed since ``heldout``; or there is no such row.
        """
        total = kept = 0
        for record in self._records():
            total += 1
            if self._number(record) >= self._threshold:
                for row in self._made(record, False, rejects):
                    kept += 1
                    yield row
        self._require("training", kept, rejects)
        if total != self.counts["records"]:
            raise InputError(f"{self.root.path}: the source changed while it was read")

    def _require(self, which: str, kept: int, rejects: list[Reject]) -> None:
        """Refuse a source that gives no row of a kind."""
        if kept:
            return
        why = f"; the first reason: {rejects[0]['id']}: {rejects[0]['reason']}" if rejects else ""
        records = self.counts["records"]
        raise InputError(f"{self.root.path}: no {which} row among {records} records of {self.found}{why}")

    def _records(self) -> Iterator[Record]:
        return read_records(self.config, self.root, self.notes)

    def _made(self, record: Record, heldout: bool, rejects: list[Reject]) -> Iterator[Row]:
        """The rows of one record; what is refused goes to ``rejects``."""
        copies = 1 if heldout or record.refused is not None else self._copies(record)
        self.counts["repeated"] += max(copies - 1, 0)
        for copy in range(max(copies, 1)):
            name = self._take_id(record, copy)
            try:
                if not copies:
                    raise Refusal(f"left out: repeat_time {record.copies:g} keeps a share of the records")
                yield self._row(record, name, heldout)
            except Refusal as refusal:
                reason = _writable(str(refusal))[:_REASON_SIGNS]
                rejects.append(Reject(id=" ".join(name.splitlines()), step=STEP, reason=reason))

    def _number(self, record: Record) -> float:
        """The number that decides the side of a record: held out when it is below the threshold."""
        given = _given_split(record)
        if record.refused is not None or given is False:
            return _NEVER
        return _ALWAYS if given else self._share("heldout", self._key(record))

    def _key(self, record: Record) -> str:
        """What decides the side of a record: its first medium, or else all it says."""
        if not record.media:
            return "\n".join(message["content"] for message in record.messages)
        medium = record.media[0]
        if medium.data is not None:
            return hashlib.sha256(medium.data).hexdigest()
        # One file has many spellings ("a.png", "./a.png"): all of them are one.
        named = os.path.join(medium.base or self.root.path, medium.path or "")  # noqa: PTH118 - a string, no path
        return str(medium.kept.get("sha256") or os.path.relpath(named, self.root.path))

    def _copies(self, record: Record) -> int:
        """Rows to make of a training record."""
        whole = int(record.copies)
        return whole + (self._share("repeat", record.place) < record.copies - whole)

    def _take_id(self, record: Record, copy: int) -> str:
        """The record's own id; with its place where that is taken, or where it has none."""
        name = _writable(record.id if record.id is not None and record.refused is None else record.place)
        name = name[:_ID_SIGNS] if name.strip() else _writable(record.place)
        name = f"{name}#{copy + 1}" if copy else name
        if self._ids.take(name):
            return name
        name = f"{name}@{_writable(record.place)}"
        while not self._ids.take(name):
            name += "+"
        return name

    def _row(self, record: Record, name: str, heldout: bool) -> Row:
        """The row of a record.

        Raises:
            Refusal: why there is none.
        """
        if record.refused is not None:
            raise Refusal(record.refused)
        config = self.config
        pretrain = not heldout and self._share("pretrain", record.place) < config.pretrain_share
        judge = record.scorer or scorer(config.scorer.name, **config.scorer.parameters)
        row: Row = {
            "id": name,
            "source": record.source or config.name or self.root.path.name or "import",
            "license": record.license or config.license,
            "media": [],
            "messages": record.messages,
            "task": PRETRAIN_TASK if pretrain else record.task or config.task or default_task(config),
            "answers": record.answers if record.answers is not None else _last_answer(record.messages),
            "scorer": judge,
            "chosen": record.chosen,
            "rejected": record.rejected,
            "steps": record.steps,
            "words": record.words,
        }
        if (half := _half_surrogate(row)) is not None:
            raise Refusal(half)
        row["media"] = load_media(record.media, _text_bytes(row), self.root, config, decode=heldout)
        if reason := check_row(row):
            raise Refusal(reason)
        try:
            score_answer(judge["name"], judge["parameters"], row["answers"][0], row["answers"])
        except ValueError as error:
            raise Refusal(f"the scorer cannot judge this row: {error}") from None
        return row

    def _share(self, purpose: str, key: str) -> float:
        """A number in [0, 1) that ``key`` decides."""
        text = f"{self.config.seed}:{purpose}:{key}".encode("utf-8", "replace")
        return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big") / (1 << 48)


def open_importer(config: AnySource) -> Importer:
    """Look at a source and decide its format.

    Raises:
        InputError: there is no such directory, or nothing in it that is known.
    """
    root = SourceRoot(config.path)
    if config.format == "auto":
        config, found = detect(config, root)
    else:
        found = f"format {config.format}"
    return Importer(config, found, root)


def _given_split(record: Record) -> bool | None:
    """Whether the record says that it is held out; None where it says nothing. An unknown name makes it a refusal."""
    if record.split is None or record.refused is not None:
        return None
    name = record.split.strip().lower() if isinstance(record.split, str) else ""
    if name in HELDOUT_NAMES:
        return True
    if name not in TRAIN_NAMES:
        record.refused = f"split {str(record.split)[:40]!r} is neither train nor a name of held-out rows"
    return False


def _last_answer(messages: list[Message]) -> list[str]:
    return [messages[-1]["content"]] if messages else []


def _texts(row: Row) -> Iterator[str]:
    yield from (row["source"], row["license"], row["task"], *row["scorer"].values(), *row["answers"])
    yield from (message["content"] for message in row["messages"])
    yield from (value for value in (row["chosen"], row["rejected"]) if value is not None)
    yield from (step["text"] for step in row["steps"] or ())
    yield from (word["text"] for word in row["words"] or ())


def _text_bytes(row: Row) -> int:
    return sum(len(text.encode()) for text in _texts(row))


def _half_surrogate(row: Row) -> str | None:
    for text in _texts(row):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            sign = ord(text[error.start])
            return "not UTF-8" if 0xDC80 <= sign <= 0xDCFF else f"a text holds half a surrogate pair ({sign:#x})"
    return None


def _writable(text: str) -> str:
    """A text that can be written, whatever it held."""
    return text.encode("utf-8", "backslashreplace").decode()
