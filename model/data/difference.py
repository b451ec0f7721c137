"""What changed between two datasets, by the ids of their rows. Imports no torch.

A row is kept as 64 bits of its id and 32 bits of each column: about 52 bytes a row, whatever its media weigh. Two ids
of a dataset of ten million rows share their 64 bits with a probability of 3 in a million.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.data.schema import ROW_SCHEMA
from model.data.shards import Dataset
from model.data.summary import Summary, row_groups, summarise

COLUMNS = tuple(name for name in ROW_SCHEMA.names if name != "id")


@dataclass
class Difference:
    """Dataset A against dataset B.

    Attributes:
        before, after: what is in A and in B.
        added, removed, changed, same: numbers of ids only in B, only in A, in both with and without a difference.
        moved: whether the ids that are in both stand in another order.
        columns: changed rows by the column that differs.
        examples: some ids of each kind (``added``, ``removed``, ``changed``), in the order of the rows.
        repeated: rows of A and of B whose id has come before; only the first of them is compared.
    """

    before: Summary
    after: Summary
    added: int = 0
    removed: int = 0
    changed: int = 0
    same: int = 0
    moved: bool = False
    columns: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    repeated: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class _Prints:
    """Fingerprints: ``ids`` uint64 [rows] sorted, ``columns`` uint32 [rows, columns], ``places`` in the dataset."""

    ids: np.ndarray
    columns: np.ndarray
    places: np.ndarray
    repeated: int


def compare(before: Dataset, after: Dataset, examples: int) -> Difference:
    """Compare two datasets row by row. What can be told from a medium's bytes (size, format, hashes) is no difference.

    Args:
        before, after: A and B.
        examples: ids to name of each kind, at most.

    Raises:
        InputError: a shard is corrupt.
    """
    old, new = _prints(before), _prints(after)
    _, at_old, at_new = np.intersect1d(old.ids, new.ids, assume_unique=True, return_indices=True)
    differs = old.columns[at_old] != new.columns[at_new]
    changed = differs.any(axis=1)
    found = Difference(summarise(before), summarise(after), repeated=(old.repeated, new.repeated))
    found.changed, found.same = int(changed.sum()), int((~changed).sum())
    found.removed, found.added = len(old.ids) - len(at_old), len(new.ids) - len(at_new)
    order = np.argsort(old.places[at_old])
    found.moved = bool((np.diff(new.places[at_new][order]) < 0).any())
    found.columns = Counter(dict(zip(COLUMNS, differs.sum(axis=0).tolist(), strict=True)))
    found.columns = +found.columns
    found.examples = {
        "added": _ids_at(after, np.delete(new.places, at_new), examples),
        "removed": _ids_at(before, np.delete(old.places, at_old), examples),
        "changed": _ids_at(after, new.places[at_new[changed]], examples),
    }
    return found


def _prints(dataset: Dataset) -> _Prints:
    ids = np.empty(len(dataset), np.uint64)
    columns = np.empty((len(dataset), len(COLUMNS)), np.uint32)
    for place, row in enumerate(_each_row(dataset)):
        ids[place] = int.from_bytes(_digest(row["id"], 8), "big")
        row["media"] = [_content(medium) for medium in row["media"]]
        columns[place] = [int.from_bytes(_digest(row[name], 4), "big") for name in COLUMNS]
    unique, first = np.unique(ids, return_index=True)
    return _Prints(unique, columns[first], first, len(ids) - len(unique))


def _content(medium: dict[str, Any]) -> list[Any]:
    """A medium without the facts that ``curate`` fills in."""
    data = medium["bytes"]
    sha256 = medium["sha256"] if data is None else hashlib.sha256(data).hexdigest()
    return [sha256, *(medium[name] for name in ("kind", "uri", "start", "end", "fps"))]


def _each_row(dataset: Dataset) -> Iterator[dict[str, Any]]:
    for group in row_groups(dataset):
        yield from group.table.to_pylist()


def _digest(value: Any, size: int) -> bytes:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def _ids_at(dataset: Dataset, places: np.ndarray, most: int) -> list[str]:
    """The ids of the first ``most`` of ``places``."""
    wanted = set(np.sort(places)[:most].tolist())
    found: list[str] = []
    start = 0
    for group in row_groups(dataset, ["id"]):
        if len(found) == len(wanted):
            break
        count = group.table.num_rows
        inside = sorted(place - start for place in wanted if start <= place < start + count)
        found += group.table["id"].take(inside).to_pylist() if inside else []
        start += count
    return found
