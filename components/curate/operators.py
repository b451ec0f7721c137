"""Daft operators: from the columns of a dataset to what decides about each row.

They look at one row at a time, so a dataset streams through them; decisions between rows are in ``duplicates.py``.
"""

import hashlib
import json
import os
import re
from typing import Any

# Read by Daft when it is imported: this process alone, no usage reports, no progress bars of its own.
os.environ["DAFT_RUNNER"] = "native"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["DAFT_PROGRESS_BAR"] = "0"

import daft
from daft import DataType, Series, col

from components.curate.config import CurateConfig
from components.curate.images import inspect_image
from model.data.errors import InputError
from model.data.schema import ROW_SCHEMA, check_row
from model.data.shards import Dataset

_TEXTS = DataType.list(DataType.string())
_FACTS = DataType.struct(
    {
        "reason": DataType.string(),
        "sha256": _TEXTS,
        "phash": _TEXTS,
        "format": _TEXTS,
        "width": DataType.list(DataType.int64()),
        "height": DataType.list(DataType.int64()),
    }
)


def signatures(dataset: Dataset, config: CurateConfig) -> daft.DataFrame:
    """One row of facts per row of ``dataset``, shard after shard (see ``Dataset.places``).

    Columns: id, task, answers; reason (None where the row is sound, else "schema: ..." or "image: ..."); sha256, phash,
    format, width, height (lists over the images); text_key (hash of the messages); text (of rows without images).
    """
    # Daft takes a path for a pattern: its special characters are escaped.
    frame = daft.read_parquet([re.sub(r"([\\*?\[\]{}])", r"\\\1", str(path)) for path in dataset.shards])
    frame = frame.with_column("invalid", schema_reason(*(col(name) for name in ROW_SCHEMA.names)))
    frame = frame.with_column("image", image_facts(col("media"), col("invalid"), config))
    facts = [col("image").get(name).alias(name) for name in ("sha256", "phash", "format", "width", "height")]
    return frame.select(
        "id",
        "task",
        "answers",
        daft.functions.coalesce(col("invalid"), col("image").get("reason")).alias("reason"),
        *facts,
        text_key(col("messages")).alias("text_key"),
        plain_text(col("media"), col("messages")).alias("text"),
    )


@daft.func.batch(return_dtype=DataType.string(), use_process=False)
def schema_reason(*columns: Series) -> list[str | None]:
    """Why each row is not a valid row (model.data.schema), or None; takes every column of the schema."""
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    reasons = (check_row(dict(zip(ROW_SCHEMA.names, row, strict=True))) for row in rows)
    return [None if reason is None else f"schema: {reason}" for reason in reasons]


@daft.func.batch(return_dtype=_FACTS, use_process=False)
def image_facts(media: Series, invalid: Series, config: CurateConfig) -> list[dict[str, Any]]:
    """Facts about the images of each row that the schema accepts; ``reason`` where one of them is no good."""
    return [
        _facts(row if reason is None else [], config)
        for row, reason in zip(media.to_pylist(), invalid.to_pylist(), strict=True)
    ]


def _facts(media: list[dict[str, Any]], config: CurateConfig) -> dict[str, Any]:
    reason, found = None, []
    for index, medium in enumerate(media):
        try:
            found.append(inspect_image(medium, config))
        except InputError as error:
            reason = f"image: media[{index}]: {error}"
            break
    names = ("sha256", "phash", "format", "width", "height")
    return {"reason": reason} | {name: [getattr(fact, name) for fact in found] for name in names}


@daft.func.batch(return_dtype=DataType.string(), use_process=False)
def text_key(messages: Series) -> list[str]:
    """Hash of the roles and contents of each row's messages, white space at the ends ignored."""
    return [
        hashlib.sha256(json.dumps([(turn["role"], turn["content"].strip()) for turn in turns]).encode()).hexdigest()
        for turns in messages.to_pylist()
    ]


@daft.func.batch(return_dtype=DataType.string(), use_process=False)
def plain_text(media: Series, messages: Series) -> list[str | None]:
    """The whole text of each row without media; None for rows with media."""
    return [
        None if row else "\n".join(turn["content"] for turn in turns)
        for row, turns in zip(media.to_pylist(), messages.to_pylist(), strict=True)
    ]
