"""The row of a dataset: its types, its Arrow schema, and what makes a row invalid.

A row is one conversation about zero or more media. Its last message is the assistant's answer, ``answers`` are the
references that the row's own scorer accepts. Rows do not depend on a tokenizer.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

import pyarrow as pa

SCHEMA_VERSION = 1
IMAGE_PLACEHOLDER = "<image>"
VIDEO_PLACEHOLDER = "<video>"
PLACEHOLDERS = {"image": IMAGE_PLACEHOLDER, "video": VIDEO_PLACEHOLDER}
IMG_START, IMG_END, IMG_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
HARMONY_START, HARMONY_CHANNEL, HARMONY_MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
HARMONY_END, HARMONY_RETURN = "<|end|>", "<|return|>"
_HARMONY = (HARMONY_START, HARMONY_CHANNEL, HARMONY_MESSAGE, HARMONY_END, HARMONY_RETURN)
_QWEN = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
# What the chat templates write around turns and images: a text that holds one would forge a turn or an image.
RESERVED = (IMG_START, IMG_END, IMG_CONTEXT, TURN_START, TURN_END, *_HARMONY, *_QWEN)
# What an answer cannot hold either: there nothing would stand for a medium.
NOT_IN_ANSWERS = (*RESERVED, *PLACEHOLDERS.values())


def reserved_word(text: str, words: Sequence[str] = RESERVED) -> str | None:
    """The first of the words that a text holds; None where it holds none."""
    return next((word for word in words if word in text), None)


class Media(TypedDict):
    """One image or video: its ``bytes``, or a ``uri`` with the hash of what lies there.

    ``start``, ``end`` (seconds) and ``fps`` describe a clip of a video; ``width`` and ``height`` are pixels as stored
    (before EXIF rotation); ``sha256`` is over the bytes, in hexadecimal; ``phash`` 16 hexadecimal digits.
    """

    kind: Literal["image", "video"]
    bytes: bytes | None
    uri: str | None
    start: float | None
    end: float | None
    fps: float | None
    format: str | None
    width: int | None
    height: int | None
    sha256: str | None
    phash: str | None


class Message(TypedDict):
    """One turn; ``content`` holds a placeholder for every medium it shows."""

    role: Literal["system", "user", "assistant"]
    content: str


class Scorer(TypedDict):
    """The function in ``scoring`` that judges an answer, and its keyword arguments as a JSON object."""

    name: str
    parameters: str


class Step(TypedDict):
    """A step of a reasoning chain and whether it is right (process supervision)."""

    text: str
    label: float | None


class Word(TypedDict):
    """A spoken word with its time in seconds (streaming)."""

    start: float
    end: float
    text: str


class Row(TypedDict):
    """One sample. The columns from ``chosen`` on belong to single stages and are None elsewhere."""

    id: str
    source: str
    license: str
    media: list[Media]
    messages: list[Message]
    task: str
    answers: list[str]
    scorer: Scorer
    chosen: NotRequired[str | None]
    rejected: NotRequired[str | None]
    steps: NotRequired[list[Step] | None]
    words: NotRequired[list[Word] | None]


class Reject(TypedDict):
    """A row that a step left out, and why."""

    id: str
    step: str
    reason: str


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


MEDIA_TYPE = pa.struct(
    [
        _required("kind", pa.string()),
        ("bytes", pa.binary()),
        ("uri", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("fps", pa.float64()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("phash", pa.string()),
    ]
)
MESSAGE_TYPE = pa.struct([_required("role", pa.string()), _required("content", pa.string())])
SCORER_TYPE = pa.struct([_required("name", pa.string()), _required("parameters", pa.string())])
STEP_TYPE = pa.struct([_required("text", pa.string()), ("label", pa.float64())])
WORD_TYPE = pa.struct(
    [_required("start", pa.float64()), _required("end", pa.float64()), _required("text", pa.string())]
)

ROW_SCHEMA = pa.schema(
    [
        _required("id", pa.string()),
        _required("source", pa.string()),
        _required("license", pa.string()),
        _required("media", pa.list_(MEDIA_TYPE)),
        _required("messages", pa.list_(MESSAGE_TYPE)),
        _required("task", pa.string()),
        _required("answers", pa.list_(pa.string())),
        _required("scorer", SCORER_TYPE),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("steps", pa.list_(STEP_TYPE)),
        ("words", pa.list_(WORD_TYPE)),
    ]
)
REJECT_SCHEMA = pa.schema([_required(name, pa.string()) for name in ("id", "step", "reason")])

_TEXT_COLUMNS = ("id", "source", "license", "task")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def image_media(data: bytes, *, image_format: str, width: int, height: int) -> Media:
    """An image held in the row: ``data`` in ``image_format`` ("PNG", "JPEG", ...), ``width`` x ``height`` pixels."""
    return {
        "kind": "image",
        "bytes": data,
        "uri": None,
        "start": None,
        "end": None,
        "fps": None,
        "format": image_format,
        "width": width,
        "height": height,
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": None,
    }


def scorer(name: str, **parameters: Any) -> Scorer:
    """The scorer column: ``parameters`` become a JSON object with sorted keys."""
    return {"name": name, "parameters": json.dumps(parameters, sort_keys=True)}


def check_row(row: Mapping[str, Any]) -> str | None:
    """Why ``row`` is not a valid row, in one line; None when it is valid.

    Looks at the structure only: media are neither decoded nor hashed here.
    """
    for check in (_check_text, _check_messages, _check_media, _check_placeholders, _check_answers, _check_stage):
        if reason := check(row):
            return reason
    return None


def _check_text(row: Mapping[str, Any]) -> str | None:
    if unknown := sorted(set(row) - set(ROW_SCHEMA.names)):
        return f"unknown column {unknown[0]!r}"
    for name in _TEXT_COLUMNS:
        if not isinstance(row.get(name), str) or not row[name].strip():
            return f"{name} is missing or empty"
    return None


def _check_messages(row: Mapping[str, Any]) -> str | None:
    messages = row.get("messages")
    if not _is_list(messages) or not messages:
        return "messages is missing or empty"
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            return "a message has no text content"
        if found := reserved_word(message["content"]):
            return f"a message holds the reserved word {found}"
    roles = [message.get("role") for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if turns and turns[-1] != "assistant":
        return "no answer: the last message is not the assistant's"
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        return "roles must be user and assistant in turn, after at most one system message"
    if not messages[-1]["content"].strip():
        return "no answer: the assistant's last message is empty"
    return None


def _check_media(row: Mapping[str, Any]) -> str | None:
    media = row.get("media")
    if not _is_list(media):
        return "media is missing (a text-only row has an empty list)"
    for index, medium in enumerate(media):
        if reason := _check_medium(medium):
            return f"media[{index}]: {reason}"
    return None


def _check_medium(medium: Any) -> str | None:
    if not isinstance(medium, Mapping) or medium.get("kind") not in PLACEHOLDERS:
        return "kind must be image or video"
    data, uri, sha256 = medium.get("bytes"), medium.get("uri"), medium.get("sha256")
    if (data is None) == (uri is None):
        return "give either bytes or uri"
    if data is not None and not isinstance(data, bytes):
        return "bytes are not bytes"
    if uri is not None and (not isinstance(uri, str) or not uri.strip()):
        return "uri is empty"
    if uri is not None and sha256 is None:
        return "a uri needs the sha256 of what lies there"
    if sha256 is not None and (not isinstance(sha256, str) or not _SHA256.fullmatch(sha256)):
        return "sha256 must be 64 hexadecimal digits"
    start, end = medium.get("start"), medium.get("end")
    if start is not None and end is not None and not 0 <= start < end:
        return "start and end must be seconds with 0 <= start < end"
    return None


def _check_placeholders(row: Mapping[str, Any]) -> str | None:
    contents = [message["content"] for message in row["messages"]]
    answers = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
    for kind, placeholder in PLACEHOLDERS.items():
        if any(placeholder in answer for answer in answers):
            return f"an answer holds the placeholder {placeholder}"
        held = sum(medium["kind"] == kind for medium in row["media"])
        shown = sum(content.count(placeholder) for content in contents)
        if held != shown:
            return f"{shown} {placeholder} placeholders for {held} media of kind {kind}"
    return None


def _check_answers(row: Mapping[str, Any]) -> str | None:
    answers = row.get("answers")
    if not _is_list(answers) or not answers:
        return "answers is missing or empty"
    if not all(isinstance(answer, str) and answer.strip() for answer in answers):
        return "an accepted answer is empty"
    judge = row.get("scorer")
    if not isinstance(judge, Mapping) or not isinstance(judge.get("name"), str) or not _NAME.fullmatch(judge["name"]):
        return "scorer.name is missing or not a name"
    try:
        parameters = json.loads(judge.get("parameters"))
    except (TypeError, ValueError, RecursionError):
        return "scorer.parameters is not JSON"
    return None if isinstance(parameters, dict) else "scorer.parameters is not a JSON object"


def _check_stage(row: Mapping[str, Any]) -> str | None:
    if (row.get("chosen") is None) != (row.get("rejected") is None):
        return "chosen and rejected come together"
    for name in ("steps", "words"):
        value = row.get(name)
        if value is not None and (not _is_list(value) or not all(isinstance(item, Mapping) for item in value)):
            return f"{name} must be a list of records"
    return None


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
