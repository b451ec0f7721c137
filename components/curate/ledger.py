"""The state of an operator on disk: one Parquet file and one completion marker per shard of the input.

A marker is written after its file, both by rename: whatever was killed, what has a marker is whole.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from model.data.artifact import write_atomic
from model.data.errors import InputError
from model.data.shards import Dataset

SHARD_ROWS = 2048
SHARD_BYTES = 128 << 20


@dataclass(frozen=True)
class Shard:
    """A run of consecutive rows: whole row groups, (file, number of the group, rows), in the order of reading."""

    first: int
    rows: int
    groups: tuple[tuple[Path, int, int], ...]


def partition(dataset: Dataset) -> list[Shard]:
    """The shards of a dataset: at most 2,048 rows or 128 MiB (encoded) each, but always a whole row group.

    Raises:
        InputError: a file cannot be read.
    """
    groups: list[tuple[int, int, Path, int, int]] = []
    for order, path in enumerate(dataset.shards):
        try:
            metadata = pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: not a readable Parquet file ({error})") from error
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            groups.append((number, order, path, group.num_rows, group.total_byte_size))
    shards: list[Shard] = []
    first = rows = size = 0
    held: list[tuple[Path, int, int]] = []
    for number, _, path, count, encoded in sorted(groups, key=lambda group: group[:2]):
        if held and (rows + count > SHARD_ROWS or size + encoded > SHARD_BYTES):
            shards.append(Shard(first, rows, tuple(held)))
            first, rows, size, held = first + rows, 0, 0, []
        held.append((path, number, count))
        rows, size = rows + count, size + encoded
    return [*shards, Shard(first, rows, tuple(held))] if held else shards


@dataclass(frozen=True)
class Ledger:
    """What one operator found, for every shard; ``key`` hashes everything that its findings depend on."""

    directory: Path
    key: str
    shards: Sequence[Shard]

    def done(self, index: int) -> bool:
        """Whether this shard has been finished by an operator of this key."""
        try:
            note = json.loads(self._marker(index).read_bytes())
            return note["key"] == self.key and note["bytes"] == self._file(index).stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def complete(self) -> bool:
        """Whether every shard is done."""
        return all(self.done(index) for index in range(len(self.shards)))

    def write(self, index: int, table: pa.Table) -> None:
        """Keep the findings about the rows of a shard: ``reason`` and one column per fact."""
        assert table.num_rows == self.shards[index].rows
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self._file(index)
        partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            pq.write_table(table, partial, compression="zstd")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        rejected = table.num_rows - table["reason"].null_count
        note = {"key": self.key, "rows": table.num_rows, "rejected": rejected, "bytes": path.stat().st_size}
        write_atomic(self._marker(index), json.dumps(note, sort_keys=True).encode())

    def columns(self) -> list[str]:
        """Names of the facts, and ``reason``."""
        return pq.read_schema(self._file(0)).names if self.shards else []

    def read(self, index: int, columns: list[str] | None = None) -> pa.Table:
        """The findings about the rows of a shard."""
        return pq.ParquetFile(self._file(index)).read(columns)

    def column(self, name: str) -> list[object]:
        """One fact about every row."""
        return [value for index in range(len(self.shards)) for value in self.read(index, [name]).column(0).to_pylist()]

    def _file(self, index: int) -> Path:
        return self.directory / f"shard-{index:05d}-of-{len(self.shards):05d}.parquet"

    def _marker(self, index: int) -> Path:
        return self.directory / f"shard-{index:05d}-of-{len(self.shards):05d}_DONE.json"
