"""ShareGPT: ``{id, conversations: [{from, value}]}`` or ``{messages: [{role, content}], images, videos}``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.collect.importers.config import SharegptSource
from components.collect.importers.conversations import conversation
from components.collect.importers.json_records import json_values
from components.collect.importers.record import MediaSource, Record, images_at, mapping, parsed, text
from components.collect.importers.root import SourceRoot

DEFAULT_TASK = "conversation"


def records(source: SharegptSource, root: SourceRoot, notes: dict[str, Any]) -> Iterator[Record]:
    """Every conversation of every file."""
    for file in root.files(lambda name: name.endswith((".json", ".jsonl")), source.file):
        values = json_values(root, file, source.max_row_bytes)
        base = (root.path / file).parent
        yield from parsed(values, lambda value, place, base=base: _record(value, place, base))


def _record(value: Any, place: str, base: Path) -> Record:
    item = mapping(value, "the record")
    turns = item.get("conversations", item.get("messages"))
    if isinstance(turns, list) and isinstance(item.get("system"), str) and item["system"]:
        turns = [{"from": "system", "value": item["system"]}, *turns]
    media = images_at(item.get("images", item.get("image")), base)
    videos = item.get("videos", item.get("video")) or []
    for path in videos if isinstance(videos, list) else [videos]:
        media.append(MediaSource("video", path=text(path, "video"), base=base))
    return conversation(item, turns, media, place)
