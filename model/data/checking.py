"""Whether a dataset is what it says: every file, every row, every medium. Imports no torch."""

import hashlib
import io
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from model.data.artifact import BESIDE_PAYLOAD, file_sha256, payload_sha256
from model.data.errors import InputError
from model.data.schema import Media, check_row
from model.data.shards import MANIFEST, Dataset, check_file, read_manifest
from model.data.summary import each_reject, row_groups
from model.data.video import FrameSampling, read_medium

Judge = Callable[[str, str, str, Sequence[str]], float]
"""(scorer, parameters, answer, references) to a score; a ValueError where the row's scorer cannot work."""


@dataclass
class Checked:
    """What has been looked at; ``elsewhere`` counts media at an address or a relative path, which are not opened."""

    rows: int = 0
    media: int = 0
    elsewhere: int = 0
    _ids: array = field(default_factory=lambda: array("Q"))


def problems(directory: Path, judge: Judge, checked: Checked) -> Iterator[str]:
    """Everything that is wrong with a dataset, one line each; nothing when it is sound.

    Memory is flat but for 8 bytes a row. Media are decoded, so a large dataset takes its time.

    Args:
        directory: what ``write_dataset`` made, or what is left of it.
        judge: scores an answer; a row's first reference must be worth something to the row's own scorer.
        checked: counts what was looked at.
    """
    if not directory.is_dir():
        yield f"{directory}: no such dataset directory"
        return
    try:
        manifest = read_manifest(directory / MANIFEST)
    except InputError as error:
        yield str(error)
        return
    sound = []
    for entry in [*manifest["shards"], manifest["rejects_file"]]:
        try:
            check_file(directory, entry, verify=True)
            sound.append(entry["file"])
        except InputError as error:
            yield str(error)
    yield from _whole(directory, manifest, sound)
    shards = [entry for entry in manifest["shards"] if entry["file"] in sound]
    for entry in shards:
        yield from _rows(Dataset(directory, manifest | {"shards": [entry]}), judge, checked)
    yield from _repeated(Dataset(directory, manifest | {"shards": shards}), checked)
    if manifest["rejects_file"]["file"] in sound:
        yield from _rejects(Dataset(directory, manifest))


def _whole(directory: Path, manifest: dict[str, Any], sound: list[str]) -> Iterator[str]:
    """What concerns the dataset as a whole."""
    listed = {entry["file"] for entry in [*manifest["shards"], manifest["rejects_file"]]} | BESIDE_PAYLOAD
    present = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    for name in sorted(present - listed):
        yield f"{directory / name}: the manifest does not list it"
    as_written = len(sound) == len(manifest["shards"]) + 1 and present <= listed
    if as_written and payload_sha256(directory) != manifest.get("payload_sha256"):
        yield f"{directory / MANIFEST}: payload_sha256 is not that of the files"
    try:
        funnel = manifest["funnel"]
        out, left = sum(funnel["rows_out"].values()), sum(funnel["rejected"].values())
        if funnel["rows_in"] + funnel.get("copied", 0) != out + left:
            yield f"{directory / MANIFEST}: funnel: {funnel['rows_in']} rows in are not {out} out and {left} rejects"
    except (KeyError, TypeError, AttributeError):
        return  # no funnel, or not curation's: its form is its step's own


def _rows(dataset: Dataset, judge: Judge, checked: Checked) -> Iterator[str]:
    (path,) = dataset.shards
    try:
        for group in row_groups(dataset):
            for row in group.table.to_pylist():
                checked.rows += 1
                checked._ids.append(_id_bits(row["id"]))
                for problem in _row(row, judge, checked):
                    yield f"{path}: row {row['id']!r}: {problem}"
    except InputError as error:
        yield str(error)


def _row(row: dict[str, Any], judge: Judge, checked: Checked) -> Iterator[str]:
    if problem := check_row(row) or _judged(row, judge):
        yield problem
    for place, medium in enumerate(row["media"]):
        checked.media += 1
        try:
            if _at_a_distance(medium):
                checked.elsewhere += 1
            else:
                _check_medium(cast("Media", medium))
        except (InputError, ValueError) as error:  # ValueError: an address that is none
            yield f"media[{place}]: {error}"


def _judged(row: dict[str, Any], judge: Judge) -> str | None:
    name, reference = row["scorer"]["name"], row["answers"][0]
    try:
        if judge(name, row["scorer"]["parameters"], reference, row["answers"]) > 0:
            return None
    except ValueError as error:
        return f"scorer: {error}"
    return f"scorer {name} gives the row's own answer {reference[:80]!r} nothing"


def _at_a_distance(medium: dict[str, Any]) -> bool:
    uri = medium["uri"]
    return uri is not None and not uri.startswith("/") and urlsplit(uri).scheme != "file"


def _check_medium(medium: Media) -> None:
    """Decode a medium and compare it with what the row says of it.

    Raises:
        InputError: it is missing, broken, or another one.
    """
    if medium["bytes"] is None:
        parts = urlsplit(medium["uri"] or "")
        path = Path(unquote(parts.path) if parts.scheme else medium["uri"] or "")
        if not path.is_file():
            raise InputError(f"there is no file {path}")
        if file_sha256(path) != medium["sha256"]:
            raise InputError(f"{path}: its sha256 is not the row's")
        return
    if medium["sha256"] not in (None, hashlib.sha256(medium["bytes"]).hexdigest()):
        raise InputError("its sha256 is not that of its bytes")
    read_medium({**medium, "fps": None}, FrameSampling(frames=1))
    if medium["kind"] != "image":
        return
    with Image.open(io.BytesIO(medium["bytes"])) as stored:
        facts = {"format": stored.format, "width": stored.width, "height": stored.height}
    for name, fact in facts.items():
        if (said := medium[name]) is not None and said != fact:  # type: ignore[literal-required]
            raise InputError(f"{name} is {fact}, the row says {said}")


def _id_bits(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _repeated(dataset: Dataset, checked: Checked) -> Iterator[str]:
    """The ids that more than one row has."""
    bits, counts = np.unique(np.frombuffer(checked._ids, np.uint64), return_counts=True)
    suspects = set(bits[counts > 1].tolist())
    seen: set[str] = set()
    for group in row_groups(dataset, ["id"]) if suspects else ():
        for text in group.table["id"].to_pylist():
            if _id_bits(text) not in suspects:
                continue
            if text in seen:
                yield f"{group.path}: row {text!r}: an earlier row has this id"
            seen.add(text)


def _rejects(dataset: Dataset) -> Iterator[str]:
    for reject in each_reject(dataset):
        if not reject["reason"].strip() or not reject["step"].strip():
            yield f"{dataset.path}: reject {reject['id']!r}: step or reason is empty"
