"""What is in a dataset, counted and sampled in one or two passes that hold one row group. Imports no torch."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.data.errors import InputError
from model.data.schema import Reject, Row
from model.data.shards import REJECTS, Dataset

SHARED = ("task", "source", "license")
"""Columns whose values split a dataset into shares."""
_LONGEST_VALUE = 200


@dataclass
class Summary:
    """Counts of a dataset.

    Attributes:
        rows, rejects: numbers of rows kept and left out.
        shares: rows by value, for each column of ``SHARED``.
        kinds: media by kind, ``none`` counts the rows without any.
        formats: media by format as stored; ``unknown`` where nobody has looked.
        sides: images and videos by the longer side in pixels, as powers of two: 256 stands for 256 to 511, 0 for
            unknown.
        media_bytes, largest_medium: bytes held in the rows: of all media, and of the largest.
        elsewhere: media that lie at a uri.
        text: characters of all messages.
        reasons: rejects by step and by what stands before the colon of their reason.
    """

    rows: int = 0
    rejects: int = 0
    shares: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in SHARED})
    kinds: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    sides: Counter[int] = field(default_factory=Counter)
    media_bytes: int = 0
    largest_medium: int = 0
    elsewhere: int = 0
    text: int = 0
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)


class Group(NamedTuple):
    """A row group: its shard, its number there, its columns."""

    path: Path
    number: int
    table: pa.Table


def row_groups(dataset: Dataset, columns: list[str] | None = None) -> Iterator[Group]:
    """The row groups in the order of ``Dataset.rows``, one in memory at a time.

    Raises:
        InputError: a shard is corrupt; names it and the group.
    """
    counts = [_open(path).num_row_groups for path in dataset.shards]
    for number in range(max(counts, default=0)):
        for path, groups in zip(dataset.shards, counts, strict=True):
            if number < groups:
                yield Group(path, number, _read(path, number, columns))


def summarise(dataset: Dataset) -> Summary:
    """Count everything in one pass.

    Raises:
        InputError: a shard is corrupt.
    """
    summary = Summary(rows=len(dataset), rejects=dataset.manifest["rejects"])
    for group in row_groups(dataset, [*SHARED, "media", "messages"]):
        for name, counter in summary.shares.items():
            counter.update(_counts(group.table[name]))
        _add_media(summary, group.table["media"])
        texts = pc.struct_field(pc.list_flatten(group.table["messages"]), "content")
        summary.text += pc.sum(pc.utf8_length(texts)).as_py() or 0
    for reject in each_reject(dataset):
        summary.reasons[reject["step"], category(reject["reason"])] += 1
    return summary


def category(reason: str) -> str:
    """What stands before the colon of a reject's reason."""
    return reason.partition(":")[0].strip()[:_LONGEST_VALUE]


def _add_media(summary: Summary, column: pa.ChunkedArray) -> None:
    media = pc.list_flatten(column)
    summary.kinds["none"] += pc.sum(pc.equal(pc.list_value_length(column), 0)).as_py() or 0
    if not len(media):
        return
    summary.kinds.update(_counts(pc.struct_field(media, "kind")))
    summary.formats.update(_counts(pc.fill_null(pc.struct_field(media, "format"), "unknown")))
    sizes = pc.binary_length(pc.struct_field(media, "bytes"))
    summary.media_bytes += pc.sum(sizes).as_py() or 0
    summary.largest_medium = max(summary.largest_medium, pc.max(sizes).as_py() or 0)
    summary.elsewhere += sizes.null_count
    longer = pc.max_element_wise(pc.struct_field(media, "width"), pc.struct_field(media, "height"))
    for side, count in _counts(pc.fill_null(longer, 0)).items():
        summary.sides[1 << (side.bit_length() - 1) if side > 0 else 0] += count


def _counts(values: pa.ChunkedArray) -> Counter[Any]:
    found = pc.value_counts(values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values)
    return Counter({item["values"].as_py(): item["counts"].as_py() for item in found})


def sample_rows(dataset: Dataset, most: int) -> Iterator[Row]:
    """At most ``most`` rows: every task has its fair share, evenly spaced among its rows. In the order of the rows.

    Whoever keeps them all keeps their media: make small what is to be kept.

    Raises:
        InputError: a shard is corrupt.
    """
    counts: Counter[str] = Counter()
    for group in row_groups(dataset, ["task"]):
        counts.update(_counts(group.table["task"]))
    quotas = fair_shares(counts, most)
    seen: Counter[str] = Counter()
    for group in row_groups(dataset, ["task"]):
        wanted = []
        for index, task in enumerate(group.table["task"].to_pylist()):
            if _evenly(seen[task], counts[task], quotas[task]):
                wanted.append(index)
            seen[task] += 1
        if wanted:
            yield from cast("list[Row]", _read(group.path, group.number, None).take(wanted).to_pylist())


def fair_shares(counts: Counter[str], most: int) -> dict[str, int]:
    """How many of ``most`` each value gets: all alike, and what the rare ones leave goes to the others."""
    quotas, left = {}, most
    ordered = sorted(counts.items(), key=lambda item: (item[1], item[0]))
    for place, (value, count) in enumerate(ordered):
        quotas[value] = min(count, left // (len(ordered) - place))
        left -= quotas[value]
    return quotas


def _evenly(place: int, count: int, quota: int) -> bool:
    """Whether ``place`` of ``count`` is one of ``quota`` evenly spaced ones: i * count // quota for some i."""
    return (place * quota) % count < quota if quota else False


def each_reject(dataset: Dataset) -> Iterator[Reject]:
    """The rejects, one row group in memory at a time."""
    path = dataset.path / REJECTS
    for number in range(_open(path).num_row_groups):
        yield from cast("list[Reject]", _read(path, number, None).to_pylist())


def sample_rejects(dataset: Dataset, most: int) -> list[Reject]:
    """At most ``most`` rejects: every category has its fair share, evenly spaced."""
    counts = Counter(category(reject["reason"]) for reject in each_reject(dataset))
    quotas = fair_shares(counts, most)
    seen: Counter[str] = Counter()
    chosen = []
    for reject in each_reject(dataset):
        kind = category(reject["reason"])
        if _evenly(seen[kind], counts[kind], quotas[kind]):
            chosen.append(reject)
        seen[kind] += 1
    return chosen


def _open(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:200]})") from error


def _read(path: Path, number: int, columns: list[str] | None) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            return file.read_row_group(number, columns)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: row group {number} is corrupt ({' '.join(str(error).split())[:200]})") from error
