"""Bring a version of a dataset from the DVC remote, shard by shard, every byte verified. Imports no torch."""

import hashlib
import shutil
from collections import Counter
from pathlib import Path

from components.context import StepContext, StepResult
from components.data_remote import DataRemote
from components.fetch.config import FetchConfig
from components.fetch.revision import pointer_at
from components.pointer import TREE_BYTES, Pointer, VersionedFile, file_md5, files_of_tree, read_pointer
from model.data.artifact import payload_sha256
from model.data.errors import InputError
from model.data.shards import open_dataset


def run(config: FetchConfig, *, pointer: Path | None = None, dataset: Path, context: StepContext) -> StepResult:
    """Fetch the version that ``pointer``, or else the configuration, names. A mebibyte is in memory at a time.

    Finished shards lie in ``state_dir``: a killed fetch does not bring them again.

    Args:
        config: revision and path where there is no pointer; another remote.
        pointer: what ``version`` wrote.
        dataset: output; appears when all of it is there and is what the pointer says.
        context: ``state_dir``.

    Raises:
        InputError: no such version; the remote is away; a byte is not what it was.
    """
    wanted = _wanted(config, pointer)
    remote = DataRemote(config.remote or wanted.remote)
    files = _listing(remote, wanted)
    shelf = context.state_dir / "objects"
    shelf.mkdir(parents=True, exist_ok=True)
    fetched = 0
    for done, file in enumerate(files):
        context.progress("fetch", done, len(files))
        fetched += _bring(remote, file, shelf)
    context.progress("fetch", len(files), len(files))
    rows = _publish(files, shelf, dataset, wanted)
    numbers = {"rows": rows, "files": len(files), "bytes": wanted.size, "fetched_bytes": fetched}
    return StepResult(numbers={name: float(value) for name, value in numbers.items()}, values={"md5": wanted.md5})


def _wanted(config: FetchConfig, pointer: Path | None) -> Pointer:
    if (pointer is None) == (config.revision is None):
        raise InputError("fetch: give either a pointer, or fetch.revision and fetch.path")
    if pointer is not None:
        return read_pointer(pointer)
    assert config.revision is not None and config.path is not None
    return pointer_at(Path(config.repository), config.revision, config.path, config.remote)


def _listing(remote: DataRemote, wanted: Pointer) -> list[VersionedFile]:
    """The files of the version, in the order of their paths."""
    data = bytearray()
    for chunk in remote.read(wanted.md5):
        data += chunk
        if len(data) > TREE_BYTES:
            raise InputError(f"DVC remote {remote.url}: {wanted.md5}: larger than any list of files")
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != wanted.md5.removesuffix(".dir"):
        raise InputError(f"DVC remote {remote.url}: {wanted.md5}: its bytes are not what its name says")
    files = files_of_tree(bytes(data), f"DVC remote {remote.url}: {wanted.md5}")
    if len(files) != wanted.nfiles:
        raise InputError(f"DVC remote {remote.url}: {wanted.md5}: {len(files)} files, the pointer says {wanted.nfiles}")
    return files


def _bring(remote: DataRemote, file: VersionedFile, shelf: Path) -> int:
    """Have the verified bytes of a file on ``shelf``; returns how many had to be fetched."""
    path = shelf / file.md5
    if path.is_file() and file_md5(path) == file.md5:
        return 0
    partial = path.with_suffix(".partial")
    digest = hashlib.md5(usedforsecurity=False)
    with partial.open("wb") as stream:
        for chunk in remote.read(file.md5):
            stream.write(chunk)
            digest.update(chunk)
    if digest.hexdigest() != file.md5:
        partial.unlink()
        raise InputError(f"DVC remote {remote.url}: {file.path}: its bytes are not what {file.md5} says")
    partial.replace(path)
    return path.stat().st_size


def _publish(files: list[VersionedFile], shelf: Path, dataset: Path, wanted: Pointer) -> int:
    """Assemble the dataset, check it as a whole, and give it its name; returns its number of rows."""
    partial = dataset.with_name(f".{dataset.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    uses = Counter(file.md5 for file in files)
    for file in files:
        target = partial / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        uses[file.md5] -= 1
        # Two shards may have the same bytes: only the last of them takes the file away.
        (shutil.copyfile if uses[file.md5] else shutil.move)(shelf / file.md5, target)
    try:
        data = open_dataset(partial)
        size = sum((partial / file.path).stat().st_size for file in files)
        sha256 = payload_sha256(partial)
        if size != wanted.size or sha256 != data.manifest["payload_sha256"] or wanted.rows not in (None, len(data)):
            raise InputError(f"{dataset}: what was fetched is not one whole dataset")
        if wanted.payload_sha256 not in (None, sha256):
            raise InputError(f"{dataset}: what was fetched is not what the pointer says: payload {sha256[:12]}")
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(dataset)
    return len(data)
