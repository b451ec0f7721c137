"""The pointer to a version of a dataset: what a line, a lineage or a colleague keeps in place of the bytes."""

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.data_remote import MD5
from model.data.artifact import payload_files
from model.data.errors import InputError
from model.data.shards import MANIFEST

POINTER = "pointer.json"
_POINTER_BYTES, TREE_BYTES = 1 << 20, 64 << 20
_CHUNK = 1 << 20
Md5Directory = Annotated[str, Field(pattern=r"^[0-9a-f]{32}\.dir$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Pointer(BaseModel):
    """Where a version lies and what it is. ``md5``, ``size`` and ``nfiles`` are what a .dvc file says of a directory.

    Attributes:
        md5: of DVC's object that lists the files of the directory.
        size: bytes of all files.
        payload_sha256: identity of the dataset (model/data/artifact.py); None when a .dvc file was all there is.
        remote: address without credentials.
        card_sha256: SHA-256 of the dataset's card in Markdown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Annotated[int, Field(ge=1, le=1)] = 1
    md5: Md5Directory
    size: int = Field(ge=0)
    nfiles: int = Field(ge=1)
    remote: str
    payload_sha256: Sha256 | None = None
    rows: int | None = Field(None, ge=0)
    rejects: int | None = Field(None, ge=0)
    card_sha256: Sha256 | None = None


class VersionedFile(NamedTuple):
    """A file of a version: its path inside the dataset, and the MD5 under which DVC keeps it."""

    path: str
    md5: str


def versioned_files(dataset: Path) -> list[Path]:
    """The files that make a version: payload and manifest. Lineage is not: it tells of one run, not of the data."""
    return sorted([*payload_files(dataset), dataset / MANIFEST], key=lambda path: path.relative_to(dataset).as_posix())


def file_md5(path: Path) -> str:
    """MD5 of a file, the name that DVC gives it. It names content; what is trusted is checked by SHA-256 too."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def tree_object(files: list[VersionedFile]) -> tuple[str, bytes]:
    """DVC's object for a directory: its name (an MD5 and ``.dir``) and its bytes."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.meta import Meta
    from dvc_data.hashfile.tree import Tree

    tree = Tree()
    for file in files:
        tree.add(PurePosixPath(file.path).parts, Meta(), HashInfo("md5", file.md5))
    data = tree.as_bytes()
    return f"{hashlib.md5(data, usedforsecurity=False).hexdigest()}.dir", data


def files_of_tree(data: bytes, where: str) -> list[VersionedFile]:
    """The files that DVC's object for a directory lists.

    Raises:
        InputError: it is none, or names a path outside the directory.
    """
    try:
        files = [VersionedFile(entry["relpath"], entry["md5"]) for entry in json.loads(data)]
        sound = all(MD5.fullmatch(file.md5) and _inside(file.path) for file in files)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{where}: not a directory object of DVC ({type(error).__name__})") from error
    if not sound or len({file.path for file in files}) != len(files):
        raise InputError(f"{where}: a file in it has no proper path or hash")
    return files


def _inside(path: str) -> bool:
    parts = path.split("/")
    return all(part not in ("", ".", "..") and "\0" not in part and "\\" not in part for part in parts)


def write_pointer(pointer: Pointer, path: Path) -> None:
    """Write ``pointer`` as JSON; the same pointer gives the same bytes."""
    path.write_text(json.dumps(pointer.model_dump(exclude_none=True), indent=2, sort_keys=True) + "\n")


def read_pointer(directory: Path) -> Pointer:
    """Read what ``version`` wrote.

    Raises:
        InputError: missing, or not a pointer; names the file and the field.
    """
    path = directory / POINTER
    if not path.is_file():
        raise InputError(f"{path}: no such file; this is no output of version")
    if path.stat().st_size > _POINTER_BYTES:
        raise InputError(f"{path}: larger than any pointer")
    return parse_pointer(path.read_bytes(), str(path))


def parse_pointer(data: bytes | dict[str, Any], where: str) -> Pointer:
    """A pointer from JSON or from its fields.

    Raises:
        InputError: not a pointer; names ``where`` and the field.
    """
    try:
        return Pointer.model_validate(data) if isinstance(data, dict) else Pointer.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "pointer"
        raise InputError(f"{where}: {field}: {first['msg']}") from error
