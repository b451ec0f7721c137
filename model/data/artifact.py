"""Identity and publication of artifacts (directories of files)."""

import hashlib
import os
import shutil
from pathlib import Path

# Lineage and reports lie beside the payload: these files never count towards an artifact's identity.
BESIDE_PAYLOAD = frozenset({"manifest.json", "lineage.json", "funnel.html", "report.html"})
_CHUNK = 1 << 20


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def payload_files(directory: Path) -> list[Path]:
    """Every payload file below ``directory``, sorted by relative POSIX path."""
    files = (p for p in directory.rglob("*") if p.is_file())
    return sorted(
        (p for p in files if p.relative_to(directory).as_posix() not in BESIDE_PAYLOAD),
        key=lambda p: p.relative_to(directory).as_posix(),
    )


def payload_sha256(directory: Path) -> str:
    """Identity of an artifact: SHA-256 over the names and contents of its payload files.

    Raises:
        FileNotFoundError: ``directory`` does not exist or holds no payload.
    """
    files = payload_files(directory)
    if not files:
        raise FileNotFoundError(f"{directory}: no such artifact, or an empty one")
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(directory).as_posix()}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def link_tree(source: Path, target: Path) -> None:
    """Materialise ``source`` at ``target`` by hard links, by copies where links are impossible.

    ``target`` is replaced as a whole; a reader never sees a part of it.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, temporary, copy_function=_link_or_copy)
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
