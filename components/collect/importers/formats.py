"""From the configuration of a source to the module that reads its format."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from components.collect.importers import (
    captions,
    csv_questions,
    huggingface,
    internvl,
    internvl_rl,
    llava,
    parquet,
    sharegpt,
    streaming,
    webdataset,
)
from components.collect.importers.config import AnySource
from components.collect.importers.record import Record
from components.collect.importers.root import SourceRoot


def read_records(config: AnySource, root: SourceRoot, notes: dict[str, Any]) -> Iterator[Record]:
    """Every record of the source, in an order that depends on its files alone.

    Args:
        config: of a decided format.
        notes: receives what the source says and no row holds.

    Raises:
        InputError: a file is damaged beyond single records, or its disk fails.
    """
    try:
        yield from _module(config).records(config, root, notes)
    except OSError as error:
        raise root.trouble(root.path, error) from error


def default_task(config: AnySource) -> str:
    """Family of the rows that name none."""
    return _module(config).DEFAULT_TASK


def _module(config: AnySource) -> ModuleType:
    match config.format:
        case "internvl":
            return internvl
        case "internvl_rl":
            return internvl_rl
        case "llava":
            return llava
        case "sharegpt":
            return sharegpt
        case "huggingface":
            return huggingface
        case "parquet":
            return parquet
        case "webdataset":
            return webdataset
        case "streaming":
            return streaming
        case "captions":
            return captions
        case "csv":
            return csv_questions
    raise ValueError(f"format {config.format!r} is not decided yet")
