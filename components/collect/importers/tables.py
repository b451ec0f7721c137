"""Parquet and Arrow files as rows of Python values, a few at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.collect.importers.root import SourceRoot
from model.data.errors import InputError

_BATCH_ROWS = 16
_BUFFER_BYTES = 1 << 20


def parquet_columns(root: SourceRoot, file: str) -> list[str]:
    """Names of a Parquet file's columns.

    Raises:
        InputError: it is truncated, or no Parquet file.
    """
    with _parquet(root, file) as table:
        return list(table.schema_arrow.names)


def parquet_rows(root: SourceRoot, file: str, columns: list[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(``file#row``, row) for every row.

    Memory: one batch of rows; pages are read as they are needed.

    Raises:
        InputError: the file is truncated, damaged, or no Parquet file.
    """
    with _parquet(root, file) as table:
        batches = table.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False)
        yield from _rows(file, batches)


def arrow_columns(root: SourceRoot, file: str) -> list[str]:
    """Names of an Arrow stream's columns.

    Raises:
        InputError: it is no Arrow stream.
    """
    with root.stream(file) as stream:
        try:
            return list(pa.ipc.open_stream(stream).schema.names)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(file, "Arrow", error) from error


def arrow_rows(root: SourceRoot, file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(``file#row``, row) for every row of an Arrow stream, as ``save_to_disk`` writes it.

    Memory: one record batch.

    Raises:
        InputError: the file is truncated, damaged, or no Arrow stream.
    """
    with root.stream(file) as stream:
        try:
            reader = pa.ipc.open_stream(stream)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(file, "Arrow", error) from error
        yield from _rows(file, reader)


def _rows(file: str, batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, dict[str, Any]]]:
    index = 0
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file}: broken after row {index} ({_one_line(error)})") from error
        for offset in range(batch.num_rows):
            yield f"{file}#{index + offset}", batch.slice(offset, 1).to_pylist()[0]
        index += batch.num_rows


def _parquet(root: SourceRoot, file: str) -> pq.ParquetFile:
    path: Path = root.require(file)
    try:
        return pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, "Parquet", error) from error


def _unreadable(file: str, kind: str, error: Exception) -> InputError:
    return InputError(f"{file}: not a readable {kind} file ({_one_line(error)})")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
