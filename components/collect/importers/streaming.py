"""StreamingVLM's and LiveCC's jsonl: a clip of a video, and the words spoken in it with their seconds.

Source: StreamingVLM (arXiv 2510.09608) and its released dataset code; a line is a conversation of two turns.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.collect.importers.config import StreamingSource
from components.collect.importers.json_records import jsonl_values
from components.collect.importers.own_fields import number
from components.collect.importers.record import MediaSource, Record, Refusal, mapping, optional_text, parsed, text
from components.collect.importers.root import SourceRoot
from model.data.schema import VIDEO_PLACEHOLDER, Message, Word

DEFAULT_TASK = "commentary"
_SEEKS = "_seeks.jsonl"
_WITH_SEEKS = "_with_seeks.jsonl"


def records(source: StreamingSource, root: SourceRoot, notes: dict[str, Any]) -> Iterator[Record]:
    """Every line; the files of byte offsets beside them (``X_seeks.jsonl``) are passed over."""
    for file in root.files(_is_data, source.file):
        base = (root.path / file).parent
        yield from parsed(
            jsonl_values(root, file, source.max_row_bytes), lambda value, place, base=base: _record(value, place, base)
        )


def _is_data(name: str) -> bool:
    return name.endswith(".jsonl") and (name.endswith(_WITH_SEEKS) or not name.endswith(_SEEKS))


def _record(value: Any, place: str, base: Path) -> Record:
    if not isinstance(value, list) or len(value) != 2:
        raise Refusal("the line is no conversation of two turns")
    user, assistant = (mapping(turn, "a turn") for turn in value)
    if (user.get("role"), assistant.get("role")) != ("user", "assistant"):
        raise Refusal("the turns must be the user's and the assistant's")
    video, query, previous = _asked(user, base)
    words = _spoken(assistant)
    messages: list[Message] = [{"role": "system", "content": previous}] if previous else []
    messages.append({"role": "user", "content": f"{VIDEO_PLACEHOLDER}\n{query}"})
    messages.append({"role": "assistant", "content": " ".join(word["text"].strip() for word in words)})
    return Record(place, messages=messages, media=[video], words=words)


def _asked(turn: dict[str, Any], base: Path) -> tuple[MediaSource, str, str]:
    """The clip, what is asked about it, and the commentary before it."""
    parts = _parts(turn)
    videos = [part for part in parts if part.get("type") == "video"]
    texts = [part for part in parts if part.get("type") == "text"]
    if len(videos) != 1 or len(texts) > 1 or len(parts) != len(videos) + len(texts):
        raise Refusal("the user's turn must hold one video and at most one text")
    start, end = (_maybe(videos[0].get(key)) for key in ("video_start", "video_end"))
    video = MediaSource("video", path=text(videos[0].get("video"), "video"), base=base, start=start, end=end)
    said = texts[0] if texts else {}
    return video, optional_text(said, "text") or "", optional_text(said, "previous") or ""


def _spoken(turn: dict[str, Any]) -> list[Word]:
    parts = _parts(turn)
    if len(parts) != 1 or parts[0].get("type") != "text_stream":
        raise Refusal("the assistant's turn must hold one text_stream")
    if parts[0].get("qa_stream"):
        raise Refusal("questions inside the stream (qa_stream) have no place in a row")
    stream = parts[0].get("text_stream")
    if not isinstance(stream, list):
        raise Refusal("text_stream is no list")
    words: list[Word] = []
    for item in stream:
        if not isinstance(item, list) or len(item) != 3:
            raise Refusal("a word of text_stream must be [start, end, text]")
        words.append({"start": number(item[0]), "end": number(item[1]), "text": text(item[2], "a word")})
    return words


def _parts(turn: dict[str, Any]) -> list[dict[str, Any]]:
    content = turn.get("content")
    if not isinstance(content, list):
        raise Refusal("the content of a turn is no list of parts")
    return [mapping(part, "a part") for part in content]


def _maybe(value: Any) -> float | None:
    return None if value is None else number(value)
