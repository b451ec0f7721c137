"""Push a dataset to the DVC remote, and say what stands for its bytes from now on. Imports no torch."""

import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple

from components.context import StepContext, StepResult
from components.data_remote import DataRemote
from components.pointer import POINTER, Pointer, VersionedFile, file_md5, tree_object, versioned_files, write_pointer
from components.version.card import Card, make_card
from components.version.config import VersionConfig
from model.data.artifact import payload_sha256
from model.data.errors import InputError
from model.data.shards import open_dataset

CARD_MARKDOWN, CARD_HTML = "card.md", "card.html"


class _Object(NamedTuple):
    """An object to push: where its bytes lie, and what DVC calls it."""

    source: Path
    oid: str
    size: int


def run(config: VersionConfig, *, dataset: Path, pointer: Path, context: StepContext) -> StepResult:
    """Push every file of ``dataset`` that the remote lacks, its list of files last.

    A version is there when its list is: a killed push is continued by the next one, which sends what is missing or of
    the wrong size. The same bytes are sent once, whatever dataset they belong to.

    Args:
        config: the remote.
        dataset: the rows to version.
        pointer: output; gets ``pointer.json`` and the card, ``card.md`` and ``card.html``.
        context: ``state_dir`` takes a file of scratch.

    Raises:
        InputError: no dataset, or a damaged one; the remote is away, full, or refuses.
    """
    if config.remote is None:
        raise InputError("version.remote: say where the bytes go, e.g. --set version.remote=/shelf")
    data = open_dataset(dataset, verify=True)
    sha256 = payload_sha256(dataset)
    if sha256 != data.manifest["payload_sha256"]:
        raise InputError(f"{dataset}: a file in it is not in its manifest")
    remote = DataRemote(config.remote)
    objects, tree = _objects(dataset, context)
    pushed = _push(remote, objects, context)
    card = make_card(data, config.name, config.examples)
    found = Pointer(
        md5=tree.oid,
        size=sum(item.size for item in objects[:-1]),
        nfiles=len(objects) - 1,
        remote=remote.url,
        payload_sha256=sha256,
        rows=len(data),
        rejects=data.manifest["rejects"],
        card_sha256=hashlib.sha256(card.markdown.encode()).hexdigest(),
    )
    _write(pointer, found, card)
    numbers = {"files": found.nfiles, "bytes": found.size, "rows": len(data)}
    numbers |= {"pushed_objects": len(pushed), "pushed_bytes": sum(item.size for item in pushed)}
    return StepResult(numbers={name: float(value) for name, value in numbers.items()}, values={"md5": found.md5})


def _objects(dataset: Path, context: StepContext) -> tuple[list[_Object], _Object]:
    """What makes the version, the list of the files last."""
    paths = versioned_files(dataset)
    files, objects = [], []
    for done, path in enumerate(paths):
        context.progress("hash", done, len(paths))
        files.append(VersionedFile(path.relative_to(dataset).as_posix(), file_md5(path)))
        objects.append(_Object(path, files[-1].md5, path.stat().st_size))
    oid, listing = tree_object(files)
    context.state_dir.mkdir(parents=True, exist_ok=True)
    scratch = context.state_dir / "files.dir"
    scratch.write_bytes(listing)
    tree = _Object(scratch, oid, len(listing))
    return [*objects, tree], tree


def _push(remote: DataRemote, objects: list[_Object], context: StepContext) -> list[_Object]:
    """Put the objects that the remote lacks, in order; returns them."""
    pushed = []
    for done, item in enumerate(objects):
        context.progress("push", done, len(objects))
        if remote.size(item.oid) != item.size:
            remote.put(item.source, item.oid)
            pushed.append(item)
    context.progress("push", len(objects), len(objects))
    return pushed


def _write(directory: Path, pointer: Pointer, card: Card) -> None:
    """The output appears complete or not at all."""
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / CARD_MARKDOWN).write_text(card.markdown, encoding="utf-8")
    (partial / CARD_HTML).write_text(card.html, encoding="utf-8")
    write_pointer(pointer, partial / POINTER)
    partial.rename(directory)
