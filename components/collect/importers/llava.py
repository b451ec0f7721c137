"""LLaVA's json: a list of ``{id, image?, conversations}``. Images are relative to the file's directory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.collect.importers.config import LlavaSource
from components.collect.importers.conversations import conversation
from components.collect.importers.json_records import json_values
from components.collect.importers.record import Record, images_at, mapping, parsed
from components.collect.importers.root import SourceRoot

DEFAULT_TASK = "conversation"


def records(source: LlavaSource, root: SourceRoot, notes: dict[str, Any]) -> Iterator[Record]:
    """Every item of every list."""
    for file in root.files(lambda name: name.endswith((".json", ".jsonl")), source.file):
        values = json_values(root, file, source.max_row_bytes)
        base = (root.path / file).parent
        yield from parsed(values, lambda value, place, base=base: _record(value, place, base))


def _record(value: Any, place: str, base: Path) -> Record:
    item = mapping(value, "the item")
    return conversation(item, item.get("conversations"), images_at(item.get("image"), base), place)
