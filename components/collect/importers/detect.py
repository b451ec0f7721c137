"""Which format a directory holds, by the names of its files and the first record of one of them."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from components.collect.importers.captions import IMAGE_ENDINGS, VIDEO_ENDINGS
from components.collect.importers.config import (
    AnySource,
    AutoSource,
    CaptionsSource,
    CsvSource,
    HuggingfaceSource,
    InternvlRlSource,
    InternvlSource,
    LlavaSource,
    ParquetSource,
    SharegptSource,
    StreamingSource,
    WebdatasetSource,
)
from components.collect.importers.huggingface import split_of_file
from components.collect.importers.internvl import is_meta
from components.collect.importers.json_records import json_values
from components.collect.importers.record import Refusal
from components.collect.importers.root import SourceRoot
from components.collect.importers.tables import parquet_columns
from model.data.errors import InputError

_OPENED = 20
"""Files of one ending that are opened."""
_FIRST_LINES = 20
_KNOWN = (".json", ".jsonl", ".parquet", ".arrow", ".tar", ".tar.gz", ".tgz", ".csv", ".tsv")
_OF_HUGGINGFACE = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")


def detect(source: AutoSource, root: SourceRoot) -> tuple[AnySource, str]:
    """The same source with its format, and what decided it ("csv (questions.csv)").

    Raises:
        InputError: nothing is known, or files of several formats lie side by side.
    """
    found: dict[type, str] = {}
    for file in _candidates(source, root):
        kind = _kind(file, root, source.max_row_bytes)
        if kind is not None:
            found.setdefault(kind, file)
    if InternvlSource in found and found[InternvlSource].endswith(".json"):
        found = {InternvlSource: found[InternvlSource]}  # the meta-json names its jsonl files itself
    if not found and (pair := _captioned(root)) is not None:
        found = {CaptionsSource: pair}
    if not found:
        raise InputError(f"{root.path}: no known format in it; name one: collect.source.format (docs/data.md)")
    if len(found) > 1:
        listed = " and ".join(f"{kind.model_fields['format'].default} ({file})" for kind, file in found.items())
        raise InputError(f"{root.path}: holds {listed}; say which: collect.source.format or collect.source.file")
    kind, file = next(iter(found.items()))
    settings: dict[str, Any] = {name: getattr(source, name) for name in source.model_fields_set - {"format"}}
    if "prompt" not in kind.model_fields:
        settings.pop("prompt", None)
    return kind(**settings), f"{kind.model_fields['format'].default} ({file})"


def _candidates(source: AutoSource, root: SourceRoot) -> Iterator[str]:
    """The first files of every known ending."""
    opened: Counter[str] = Counter()
    for file in root.files(lambda name: name.lower().endswith(_KNOWN) and name not in _OF_HUGGINGFACE, source.file):
        ending = PurePosixPath(file).suffix.lower()
        opened[ending] += 1
        if opened[ending] <= _OPENED:
            yield file


def _kind(file: str, root: SourceRoot, limit: int) -> type | None:
    """The format of one file; None where it is none of ours."""
    name = file.lower()
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return WebdatasetSource
    if name.endswith((".csv", ".tsv")):
        return CsvSource
    if name.endswith(".arrow"):
        return None if "/cache-" in f"/{name}" else HuggingfaceSource
    if name.endswith(".parquet"):
        return _table(file, root)
    if is_meta(root, file):
        return InternvlSource
    return _of_records(file, root, limit)


def _table(file: str, root: SourceRoot) -> type:
    if "reward_model" in parquet_columns(root, file):
        return InternvlRlSource
    return HuggingfaceSource if split_of_file(file) else ParquetSource


def _of_records(file: str, root: SourceRoot, limit: int) -> type | None:
    """By the first record that can be read."""
    try:
        values = [value for _, value in islice(json_values(root, file, limit), _FIRST_LINES)]
    except InputError:
        return None  # a configuration, a vocabulary: json of another kind
    value = next((value for value in values if not isinstance(value, Refusal)), None)
    if isinstance(value, list):
        return StreamingSource if file.lower().endswith(".jsonl") and value and isinstance(value[0], dict) else None
    if not isinstance(value, dict):
        return None
    if "chosen" in value and "question" in value:
        return InternvlSource
    turns = value.get("conversations", value.get("messages"))
    if not isinstance(turns, list):
        return None
    if file.lower().endswith(".json"):
        return LlavaSource if "image" in value else SharegptSource
    return InternvlSource if "conversations" in value and _of_internvl(value) else SharegptSource


def _of_internvl(value: dict[str, Any]) -> bool:
    """Its turns are from human, gpt, system, function or pretrain; ShareGPT's lines without media are the same."""
    return not {"images", "videos"} & set(value)


def _captioned(root: SourceRoot) -> str | None:
    """An image or video of the folder; its texts lie beside it."""
    endings = IMAGE_ENDINGS + VIDEO_ENDINGS
    return next(iter(root.files(lambda name: name.lower().endswith(endings))), None)
