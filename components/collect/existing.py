"""Rows of an existing dataset: each one valid, with an id of its own, or rejected with a reason."""

from collections.abc import Iterator
from pathlib import Path

from model.data.errors import InputError
from model.data.schema import Reject, Row, check_row
from model.data.shards import Dataset, open_dataset

STEP = "collect"


def open_source(directory: Path) -> tuple[Dataset, Dataset]:
    """The ``train`` and ``heldout`` datasets below ``directory``, their hashes verified.

    Raises:
        InputError: names the directory or file that is missing or damaged.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; it must hold the datasets train and heldout")
    return open_dataset(directory / "train", verify=True), open_dataset(directory / "heldout", verify=True)


def valid_rows(dataset: Dataset, rejects: list[Reject], seen: set[str]) -> Iterator[Row]:
    """The valid rows of ``dataset``, in order; the others are appended to ``rejects``.

    Args:
        seen: ids that are taken; grows as rows are yielded. An id that occurs twice is a reason to reject.

    Raises:
        InputError: the dataset has no valid row at all.
    """
    kept = 0
    for index, row in enumerate(dataset.rows()):
        reason = check_row(row)
        if reason is None and row["id"] in seen:
            reason = "the id is taken by an earlier row"
        if reason is not None:
            rejects.append({"id": row["id"] or f"row {index}", "step": STEP, "reason": reason})
            continue
        seen.add(row["id"])
        kept += 1
        yield row
    if not kept:
        why = f"; the first reason: {rejects[-len(dataset)]['reason']}" if len(dataset) else ""
        raise InputError(f"{dataset.path}: no valid row among {len(dataset)}{why}")
