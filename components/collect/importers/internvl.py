"""InternVL's meta-json and jsonl: conversations, MPO pairs, process rewards.

Source: the released training code's readers (reference: InternVL3.5, section 6, "Data formats"). A line is told by
its keys: ``chosen`` makes a preference pair; a conversation in which every answer is ``+`` or ``-`` gives step labels.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from components.collect.importers.config import InternvlSource
from components.collect.importers.conversations import conversation, split_of
from components.collect.importers.json_records import jsonl_values
from components.collect.importers.own_fields import number, take_own_fields
from components.collect.importers.record import (
    MediaSource,
    Record,
    Refusal,
    given_id,
    images_at,
    leading_images,
    mapping,
    optional_text,
    parsed,
    question,
    text,
)
from components.collect.importers.root import SourceRoot
from model.data.errors import InputError
from model.data.schema import IMAGE_PLACEHOLDER, Step

DEFAULT_TASK = "conversation"
PRETRAIN_TASK = "pretrain"
_META_BYTES = 16 << 20
_LABELS = {"+": 1.0, "-": 0.0}


def records(source: InternvlSource, root: SourceRoot, notes: dict[str, Any]) -> Iterator[Record]:
    """Every line of every set. Sets and their ``data_augment`` go to ``notes``.

    Raises:
        InputError: the meta-json or a set's annotation cannot be read.
    """
    metas = [file for file in root.files(lambda name: name.endswith(".json"), source.file) if is_meta(root, file)]
    if metas:
        for file in metas:
            yield from _sets(source, root, file, notes)
        return
    for file in root.files(lambda name: name.endswith(".jsonl"), source.file):
        base = (root.path / file).parent
        yield from parsed(jsonl_values(root, file, source.max_row_bytes), partial(_record, base=base))


def is_meta(root: SourceRoot, file: str) -> bool:
    """Whether a file is a meta-json: set names over ``{root, annotation, ...}``."""
    if not file.lower().endswith(".json") or root.require(file).stat().st_size > _META_BYTES:
        return False
    with root.stream(file) as stream:
        try:
            content = json.loads(stream.read())
        except (ValueError, RecursionError):
            return False
    return isinstance(content, dict) and any(isinstance(v, dict) and "annotation" in v for v in content.values())


def _sets(source: InternvlSource, root: SourceRoot, meta: str, notes: dict[str, Any]) -> Iterator[Record]:
    with root.stream(meta) as stream:
        sets = json.loads(stream.read())
    for name, described in sets.items():
        label = f"{meta}: {name}"
        if not isinstance(described, dict) or not isinstance(described.get("annotation"), str):
            raise InputError(f"{label}: no annotation")
        repeat = described.get("repeat_time", 1)
        if isinstance(repeat, bool) or not isinstance(repeat, int | float) or not 0 < repeat <= 1000:
            raise InputError(f"{label}: repeat_time must be a number above 0 and at most 1000")
        base = _directory(root, (root.path / meta).parent, described.get("root", ""), label)
        annotation = described["annotation"]
        beside = (root.path / meta).parent
        file = root.relative(root.require(annotation, beside))
        notes.setdefault("sets", {})[name] = {
            key: described[key] for key in ("data_augment", "repeat_time", "max_dynamic_patch") if key in described
        }
        for record in parsed(jsonl_values(root, file, source.max_row_bytes), partial(_record, base=base)):
            record.copies = float(repeat)
            if len(sets) > 1:  # two sets may share a file
                record.place = f"{name}/{record.place}"
            yield record


def _directory(root: SourceRoot, beside: Path, given: Any, label: str) -> Path:
    """The directory that a set's media are relative to."""
    if not isinstance(given, str) or "\0" in given or "://" in given:
        raise InputError(f"{label}: root must be a directory of the source")
    found = (beside / given).resolve()
    if not found.is_relative_to(root.path):
        raise InputError(f"{label}: root {given!r} leads outside {root.path}")
    if not found.is_dir():
        raise InputError(f"{label}: root {given!r}: no such directory")
    return found


def _record(value: Any, place: str, base: Path) -> Record:
    line = mapping(value, "the line")
    media = _media(line, base)
    if "chosen" in line or "rejected" in line:
        record = _pair(line, media, place)
    elif _is_document(line):
        record = _document(line, media, place)
    else:
        record = conversation(line, line.get("conversations"), media, place)
        if "steps" not in line:
            record.steps = _steps(record)
    return take_own_fields(record, line)


def _media(line: dict[str, Any], base: Path) -> list[MediaSource]:
    if line.get("video") is None:
        return images_at(line.get("image"), base)
    if line.get("image"):
        raise Refusal("the line has images and a video: their order is not said")
    video = MediaSource("video", path=text(line["video"], "video"), base=base)
    if (clip := line.get("clip")) is not None:
        if not isinstance(clip, list) or len(clip) != 2:
            raise Refusal("clip must be [start, end]")
        video.start, video.end = (number(second, "clip") for second in clip)
    if (fps := line.get("fps")) is not None:
        video.fps = number(fps, "fps")
    return [video]


def _pair(line: dict[str, Any], media: list[MediaSource], place: str) -> Record:
    """MPO: the better answer is the conversation's; ``answer_gt`` is what scorers accept."""
    chosen, rejected = text(line.get("chosen"), "chosen"), text(line.get("rejected"), "rejected")
    asked = text(line.get("question"), "question")
    truth = line.get("answer_gt")
    return Record(
        place,
        id=given_id(line),
        split=split_of(line),
        messages=question(asked, media, chosen, optional_text(line, "system_prompt")),
        media=media,
        answers=None if truth in (None, "") else [str(truth)],
        chosen=chosen,
        rejected=rejected,
    )


def _is_document(line: dict[str, Any]) -> bool:
    turns = line.get("conversations")
    return isinstance(turns, list) and any(isinstance(turn, dict) and turn.get("from") == "pretrain" for turn in turns)


def _document(line: dict[str, Any], media: list[MediaSource], place: str) -> Record:
    """A ``pretrain`` turn: a text, all of which is learned, after its images. It answers an empty question."""
    turns = line["conversations"]
    if len(turns) != 1:
        raise Refusal("a 'pretrain' turn stands alone")
    content = text(turns[0].get("value"), "the text of a turn of 'pretrain'")
    images, rest = leading_images(content)
    if not images and len(media) == 1 and IMAGE_PLACEHOLDER not in content:
        images = 1
    if IMAGE_PLACEHOLDER in rest:
        raise Refusal("an image inside the text of a 'pretrain' turn has no place in a row")
    messages = question(f"{IMAGE_PLACEHOLDER}\n" * images, [], rest)
    record = Record(place, id=given_id(line), split=split_of(line), messages=messages, media=media)
    record.task = PRETRAIN_TASK
    return record


def _steps(record: Record) -> list[Step] | None:
    """Step labels of a process-reward conversation: what the user says is a step, the answer is its label."""
    turns = [turn for turn in record.messages if turn["role"] != "system"]
    said, labels = turns[::2], turns[1::2]
    if not labels or not all(turn["content"].strip() in _LABELS for turn in labels):
        return None
    return [
        {"text": step["content"], "label": _LABELS[label["content"].strip()]}
        for step, label in zip(said, labels, strict=False)
    ]
