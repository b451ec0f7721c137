"""Datasets on disk: Parquet shards, the rows that were left out, and a manifest.

The layout of a dataset directory::

    shard-00000-of-00002.parquet   rows (model.data.schema.ROW_SCHEMA)
    shard-00001-of-00002.parquet
    rejects.parquet                id, step, reason: nothing is dropped in silence
    manifest.json                  schema version, rows, size and SHA-256 of every file, payload hash

Row groups go to the shards in turn, and are read back in turn, so that the order of the rows does not depend on the
number of shards and only one row group is in memory at a time. The bytes are a function of the rows and of the
pyarrow version alone.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from model.data.artifact import file_sha256, payload_sha256, write_atomic
from model.data.errors import InputError
from model.data.schema import REJECT_SCHEMA, ROW_SCHEMA, SCHEMA_VERSION, Reject, Row

MANIFEST = "manifest.json"
REJECTS = "rejects.parquet"
GROUP_ROWS = 512
GROUP_BYTES = 32 << 20
_MANIFEST_BYTES = 16 << 20
_SHARD_NAME = re.compile(r"shard-\d{5}-of-\d{5}\.parquet")
_WRITER = {"version": "2.6", "compression": "zstd", "compression_level": 3, "data_page_version": "1.0"}


@dataclass(frozen=True)
class Dataset:
    """A complete dataset directory (see ``open_dataset``)."""

    path: Path
    manifest: dict[str, Any]

    def __len__(self) -> int:
        return self.manifest["rows"]

    @property
    def shards(self) -> list[Path]:
        """The Parquet files that hold the rows, in order."""
        return [self.path / shard["file"] for shard in self.manifest["shards"]]

    def rows(self) -> Iterator[Row]:
        """Every row in the order of writing; holds one row group in memory.

        Raises:
            InputError: a shard is corrupt, truncated, or of another schema.
        """
        files = [_open_parquet(path, ROW_SCHEMA) for path in self.shards]
        try:
            for group in range(max((file.num_row_groups for file in files), default=0)):
                for path, file in zip(self.shards, files, strict=True):
                    if group < file.num_row_groups:
                        yield from cast("list[Row]", _read_group(path, file, group))
        finally:
            for file in files:
                file.close()

    def places(self) -> list[int]:
        """For each row, shard after shard, its place in ``rows()``: for engines that read the files themselves."""
        groups: list[tuple[int, int, int]] = []
        for shard, path in enumerate(self.shards):
            with _open_parquet(path, ROW_SCHEMA) as file:
                groups += [
                    (group, shard, file.metadata.row_group(group).num_rows) for group in range(file.num_row_groups)
                ]
        first, place = {}, 0
        for group, shard, count in sorted(groups):
            first[group, shard] = place
            place += count
        return [first[group, shard] + row for group, shard, count in groups for row in range(count)]

    def rejects(self) -> list[Reject]:
        """The rows that were left out on the way here."""
        path = self.path / REJECTS
        with _open_parquet(path, REJECT_SCHEMA) as file:
            return [reject for group in range(file.num_row_groups) for reject in _read_group(path, file, group)]


def write_dataset(
    directory: Path,
    rows: Iterable[Row],
    *,
    shards: int = 1,
    rejects: Iterable[Reject] = (),
    extra_manifest: Mapping[str, Any] | None = None,
) -> Dataset:
    """Write ``rows`` as a dataset at ``directory``, which appears only when it is complete.

    Args:
        directory: must not exist (or be empty); its parents are made.
        rows: consumed once, one row group at a time.
        shards: number of Parquet files.
        rejects: read after ``rows`` is exhausted, so a generator of rows may fill this list as it goes.
        extra_manifest: further keys of the manifest, read after ``rows`` is exhausted; they may not be the keys that
            every manifest has.

    Raises:
        InputError: ``directory`` holds something already, or a row does not fit the schema (names the row).
    """
    if shards < 1:
        raise ValueError(f"shards must be positive, not {shards}")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory}: exists already and is not empty")
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        names = [f"shard-{index:05d}-of-{shards:05d}.parquet" for index in range(shards)]
        counts = _write_shards([partial / name for name in names], rows)
        rejected = pa.Table.from_pylist(list(rejects), schema=REJECT_SCHEMA)
        pq.write_table(rejected, partial / REJECTS, **_WRITER)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "rows": sum(counts),
            "rejects": rejected.num_rows,
            "shards": [_entry(partial / name, count) for name, count in zip(names, counts, strict=True)],
            "rejects_file": _entry(partial / REJECTS, rejected.num_rows),
            "payload_sha256": payload_sha256(partial),
        }
        extra = dict(extra_manifest or {})
        if taken := sorted(set(extra) & set(manifest)):
            raise ValueError(f"extra_manifest may not set {taken[0]!r}")
        write_atomic(partial / MANIFEST, json.dumps(manifest | extra, indent=2, sort_keys=True).encode() + b"\n")
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Dataset(directory, manifest | extra)


def open_dataset(directory: Path, *, verify: bool = False) -> Dataset:
    """Open a dataset directory, after checking that all of it is there.

    Args:
        directory: what ``write_dataset`` made.
        verify: also compare the SHA-256 of every file with the manifest (reads everything once).

    Raises:
        InputError: one line naming the file that is missing, of the wrong size, corrupt or changed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such dataset directory")
    manifest = read_manifest(directory / MANIFEST)
    for entry in [*manifest["shards"], manifest["rejects_file"]]:
        check_file(directory, entry, verify=verify)
    return Dataset(directory, manifest)


def check_file(directory: Path, entry: Mapping[str, Any], *, verify: bool) -> None:
    """Compare one file of a dataset with its entry in the manifest; with ``verify``, its SHA-256 too.

    Raises:
        InputError: one line naming the file that is missing, of the wrong size, corrupt or changed.
    """
    path = directory / entry["file"]
    if not path.is_file():
        raise InputError(f"{path}: missing (the manifest lists it)")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise InputError(f"{path}: {size} bytes, the manifest says {entry['bytes']}; truncated or changed")
    if verify and file_sha256(path) != entry["sha256"]:
        raise InputError(f"{path}: its SHA-256 is not the manifest's; the file was changed")
    schema = REJECT_SCHEMA if entry["file"] == REJECTS else ROW_SCHEMA
    with _open_parquet(path, schema) as file:
        if file.metadata.num_rows != entry["rows"]:
            raise InputError(f"{path}: {file.metadata.num_rows} rows, the manifest says {entry['rows']}")


def _write_shards(paths: list[Path], rows: Iterable[Row]) -> list[int]:
    """Deal row groups to the shards in turn; returns the number of rows in each."""
    counts = [0] * len(paths)
    writers: list[pq.ParquetWriter] = []
    try:
        for path in paths:
            writers.append(pq.ParquetWriter(path, ROW_SCHEMA, **_WRITER))
        for index, group in enumerate(_groups(rows)):
            shard = index % len(paths)
            writers[shard].write_batch(_record_batch(group), row_group_size=len(group))
            counts[shard] += len(group)
    finally:
        for writer in writers:
            writer.close()
    return counts


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Row groups of at most GROUP_ROWS rows and about GROUP_BYTES bytes of media."""
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += sum(len(medium.get("bytes") or b"") for medium in row.get("media") or ())
        if len(group) == GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _record_batch(rows: list[Row]) -> pa.RecordBatch:
    try:
        batch = pa.RecordBatch.from_pylist(cast("list[dict[str, Any]]", rows), schema=ROW_SCHEMA)
        batch.validate(full=True)
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        if len(rows) > 1:
            for row in rows:
                _record_batch([row])
        raise InputError(f"row {rows[0].get('id')!r}: does not fit the schema: {_one_line(error)}") from error
    for name in (field.name for field in ROW_SCHEMA if not field.nullable):
        if nulls := batch.column(name).null_count:
            row = rows[batch.column(name).is_null().index(True).as_py()]
            raise InputError(f"row {row.get('id')!r}: column {name} is missing ({nulls} rows)")
    for row in rows:
        if unknown := sorted(set(row) - set(ROW_SCHEMA.names)):
            raise InputError(f"row {row['id']!r}: unknown column {unknown[0]!r}")
        if isinstance(row["answers"], str):  # Arrow would take it for a list of characters
            raise InputError(f"row {row['id']!r}: answers is a string, not a list of strings")
    return batch


def _entry(path: Path, rows: int) -> dict[str, Any]:
    return {"file": path.name, "rows": rows, "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a dataset, its list of files checked to make one.

    Raises:
        InputError: missing, not a manifest, or of another schema version.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing; this is no dataset, or its writing was not finished")
    if path.stat().st_size > _MANIFEST_BYTES:
        raise InputError(f"{path}: larger than any manifest")
    try:
        manifest = json.loads(path.read_bytes())
        version = manifest["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a dataset manifest ({_one_line(error)})") from error
    if version != SCHEMA_VERSION:
        raise InputError(f"{path}: schema version {version!r}, this program reads {SCHEMA_VERSION}")
    try:
        entries = [*manifest["shards"], manifest["rejects_file"]]
        total = sum(int(entry["rows"]) for entry in manifest["shards"])
        complete = all({"file", "rows", "bytes", "sha256"} <= set(entry) for entry in entries)
        named = all(_SHARD_NAME.fullmatch(entry["file"]) for entry in manifest["shards"])
        named = named and manifest["rejects_file"]["file"] == REJECTS
        sound = complete and named and bool(manifest["shards"]) and total == manifest["rows"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a dataset manifest ({_one_line(error)})") from error
    if not sound:
        raise InputError(f"{path}: its list of files does not make a dataset")
    return manifest


def _open_parquet(path: Path, schema: pa.Schema) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({_one_line(error)})") from error
    found = file.schema_arrow
    if not found.equals(schema):
        names = [name for name in schema.names if name not in found.names or found.field(name) != schema.field(name)]
        file.close()
        raise InputError(f"{path}: column {names[0] if names else found.names[-1]!r} is not the dataset schema's")
    return file


def _read_group(path: Path, file: pq.ParquetFile, group: int) -> list[dict[str, Any]]:
    try:
        return file.read_row_group(group).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: row group {group} is corrupt ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
