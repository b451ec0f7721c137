"""Any Parquet files, with a mapping of columns."""

from collections.abc import Iterator
from typing import Any

from components.collect.importers.cells import record_of, resolve
from components.collect.importers.config import ParquetSource
from components.collect.importers.record import Record, parsed
from components.collect.importers.root import SourceRoot
from components.collect.importers.tables import parquet_columns, parquet_rows

DEFAULT_TASK = "answer"


def records(source: ParquetSource, root: SourceRoot, notes: dict[str, Any]) -> Iterator[Record]:
    """Every row of every file; paths in it are relative to the file's directory.

    Raises:
        InputError: a file is damaged, or lacks a column that it needs.
    """
    for file in root.files(lambda name: name.endswith(".parquet"), source.file):
        columns = resolve(source.columns, parquet_columns(root, file), file)
        base = (root.path / file).parent

        def parse(row: dict[str, Any], place: str, columns: dict = columns, base: Any = base) -> Record:
            return record_of(row, columns, place, prompt=source.prompt, split=None, base=base)

        # A long row group is read page by page, so columns that mean nothing here cost nothing.
        wanted = sorted(set(columns.values()))
        yield from parsed(parquet_rows(root, file, wanted), parse)
