"""A dataset as InternVL's training code reads it: ``meta.json``, ``sft.jsonl``, ``mpo.jsonl``, and files of media.

Keys that InternVL does not know (``task``, ``answers``, ``scorer``, ...) stand beside its own: its reader passes over
them, and our importer takes them back, so that export and import is the identity on every row that is not refused.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from components.collect.exporters.publishing import (
    REJECTS,
    Exported,
    Unfit,
    file_ending,
    json_line,
    new_directory,
    reject_line,
)
from components.collect.importers.own_fields import OWN
from model.data.schema import Media, Row

_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}
_SETS = ("sft", "mpo")
_MEDIA = "media"


def export_internvl(rows: Iterable[Row], directory: Path) -> Exported:
    """Write every row that the format can hold; the others go to ``rejects.jsonl`` with the reason.

    Args:
        rows: of a dataset, valid; consumed once.
        directory: must not exist, or be empty.

    Raises:
        InputError: ``directory`` holds something.
    """
    counts, rejected = dict.fromkeys(_SETS, 0), 0
    with new_directory(directory) as partial, ExitStack() as files:
        written = {name: files.enter_context((partial / f"{name}.jsonl").open("w", encoding="utf-8")) for name in _SETS}
        rejects = files.enter_context((partial / REJECTS).open("w", encoding="utf-8"))
        for row in rows:
            try:
                name, line = _line(row)
            except Unfit as unfit:
                rejects.write(reject_line(row["id"], str(unfit)))
                rejected += 1
                continue
            for medium, path in zip(row["media"], map(_path, row["media"]), strict=True):
                _write_once(partial / path, medium)
            written[name].write(json_line(line))
            counts[name] += 1
        files.pop_all().close()
        for name, count in counts.items():
            if not count:
                (partial / f"{name}.jsonl").unlink()
        meta = {
            f"{directory.name}_{name}": {
                "root": "",
                "annotation": f"{name}.jsonl",
                "data_augment": False,
                "repeat_time": 1,
                "length": count,
            }
            for name, count in counts.items()
            if count
        }
        (partial / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return Exported(sum(counts.values()), rejected)


def _line(row: Row) -> tuple[str, dict[str, Any]]:
    """The set and the line of a row.

    Raises:
        Unfit: the format has no place for it.
    """
    own = {name: row.get(name) for name in OWN if row.get(name) is not None}
    # A null says that answers of + and - alone are no step labels.
    own["steps"] = row.get("steps")
    shown = {"id": row["id"]} | _media(row["media"])
    if row.get("chosen") is None:
        turns = [{"from": _SPEAKERS[turn["role"]], "value": turn["content"]} for turn in row["messages"]]
        return "sft", shown | {"conversations": turns} | own
    messages = list(row["messages"])
    system = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
    if len(messages) != 2 or messages[1]["content"] != row["chosen"]:
        raise Unfit("a preference pair of InternVL is about one question, and its answer is the chosen one")
    if system == "":
        raise Unfit("a preference pair of InternVL has no empty system prompt")
    pair = {"question": messages[0]["content"], "chosen": row["chosen"], "rejected": row["rejected"]}
    truth = row["answers"][0]
    return "mpo", shown | pair | ({"system_prompt": system} if system else {}) | {"answer_gt": truth} | own


def _media(media: list[Media]) -> dict[str, Any]:
    if not media:
        return {}
    if any(medium["bytes"] is None for medium in media):
        raise Unfit("a medium lies at a uri")
    videos = [medium for medium in media if medium["kind"] == "video"]
    if videos and len(media) > 1:
        raise Unfit("InternVL holds one video in a line, or images")
    if videos:
        (video,) = videos
        if (video["start"] is None) != (video["end"] is None):
            raise Unfit("a clip of InternVL has a start and an end")
        clip = {} if video["start"] is None else {"clip": [video["start"], video["end"]]}
        return {"video": _path(video)} | clip | ({} if video["fps"] is None else {"fps": video["fps"]})
    paths = [_path(medium) for medium in media]
    widths, heights = [medium["width"] for medium in media], [medium["height"] for medium in media]
    if len(media) == 1:
        return {"image": paths[0], "width": widths[0], "height": heights[0]}
    return {"image": paths, "width_list": widths, "height_list": heights}


def _path(medium: Media) -> str:
    """Where the bytes go: by their hash (a row may state none), so that rows about one image share a file."""
    sha256 = hashlib.sha256(medium["bytes"] or b"").hexdigest()
    return f"{_MEDIA}/{sha256[:2]}/{sha256}.{file_ending(medium)}"


def _write_once(path: Path, medium: Media) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(medium["bytes"] or b"")
