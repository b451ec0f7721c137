"""A directory of Hugging Face ``datasets``: Arrow files of ``save_to_disk``, or Parquet files named by split.

Read with pyarrow alone: the ``datasets`` library could run a dataset's own code, and is not needed.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from components.collect.importers.cells import record_of, resolve
from components.collect.importers.config import HuggingfaceSource
from components.collect.importers.record import HELDOUT_NAMES, TRAIN_NAMES, Record, parsed
from components.collect.importers.root import SourceRoot
from components.collect.importers.tables import arrow_columns, arrow_rows, parquet_columns, parquet_rows

DEFAULT_TASK = "answer"
_SPLITS = HELDOUT_NAMES | TRAIN_NAMES


def records(source: HuggingfaceSource, root: SourceRoot, notes: dict[str, Any]) -> Iterator[Record]:
    """Every row of every file, with the split of its folder (``save_to_disk``) or of its name (``train-00000-...``).

    Where all files are of one split, that says nothing, and the configuration's share is held out.

    Raises:
        InputError: a file is damaged, or lacks a column that it needs.
    """
    splits = {split_of_file(file) for file in _files(source, root)}
    notes["splits"] = sorted(split or "" for split in splits)
    for file in _files(source, root):
        is_arrow = file.lower().endswith(".arrow")
        present = arrow_columns(root, file) if is_arrow else parquet_columns(root, file)
        columns = resolve(source.columns, present, file)
        split = split_of_file(file) if len(splits) > 1 else None

        def parse(row: dict[str, Any], place: str, columns: dict = columns, split: str | None = split) -> Record:
            return record_of(row, columns, place, prompt=source.prompt, split=split, base=None)

        rows = arrow_rows(root, file) if is_arrow else parquet_rows(root, file, sorted(set(columns.values())))
        yield from parsed(rows, parse)


def _files(source: HuggingfaceSource, root: SourceRoot) -> Iterator[str]:
    # Hugging Face keeps what its own maps have made in cache-*.arrow beside the data.
    return root.files(lambda name: name.endswith((".arrow", ".parquet")) and not name.startswith("cache-"), source.file)


def split_of_file(file: str) -> str | None:
    """The split that a file's name or folder says."""
    path = PurePosixPath(file)
    stem = re.split(r"[-.]", path.name)[0].lower()
    for name in (stem, *(part.lower() for part in reversed(path.parent.parts))):
        if name in _SPLITS:
            return name
    return None
