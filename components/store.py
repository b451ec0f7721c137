"""The store: a directory of finished outputs by key. What it holds is done and never computed again.

``<key>/<output>/...`` are the outputs and ``<key>/result.json`` says what is in them. An entry appears by one rename,
so it is there as a whole or not at all. One process at a time computes a key; others wait and take its result.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.lock import FileLock, Held
from model.data.artifact import payload_sha256, write_atomic

RESULT = "result.json"
COMPUTED = "computed.json"
"""In a workspace: the step has run, only tracking and publication are missing."""
_WORK, _LOCKS, _DAMAGED = ".work", ".locks", ".damaged"


@dataclass(frozen=True)
class Entry:
    """One finished step: its directory in the store, and the lineage that lies beside its outputs."""

    directory: Path
    lineage: dict[str, Any]

    @property
    def outputs(self) -> dict[str, Path]:
        """Directory of each output."""
        return {name: self.directory / name for name in self.lineage["outputs"]}


class Store:
    """A store below ``root``, on a local disk or a volume with working ``flock``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def locked(self, key: str, name: str) -> Iterator[None]:
        """Hold the lock of ``key``. Whoever has to wait says so, with the name of the step."""
        lock = FileLock(self.root / _LOCKS / key)
        try:
            try:
                lock.take()
            except Held as held:
                print(f"fovea: {name}: process {held.pid} is computing the same; waiting for it", file=sys.stderr)
                lock.wait()
            yield
        finally:
            lock.close()

    def find(self, key: str) -> Entry | None:
        """The entry of ``key`` if it is there and whole. A damaged one is moved aside, and None is returned."""
        directory = self.root / key
        if not directory.exists():
            return None
        damage = None
        try:
            record = json.loads((directory / RESULT).read_text())
            damage = _damage(directory, record)
        except (OSError, ValueError, KeyError) as error:
            damage = f"{RESULT}: {error}"
        if damage is None:
            return Entry(directory, record["lineage"])
        aside = self.root / _DAMAGED / f"{key}.{time.time_ns()}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        directory.rename(aside)
        print(f"fovea: {directory} is damaged ({damage}); moved to {aside}, computing it again", file=sys.stderr)
        return None

    def workspace(self, key: str) -> Path:
        """The directory in which ``key`` is computed, as its last process left it. Hold the lock of ``key``."""
        self._remove_dead(but=key)
        directory = self.root / _WORK / key
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def publish(self, key: str, lineage: dict[str, Any]) -> Entry:
        """Make the workspace of ``key`` its entry, by one rename. Hold the lock of ``key``."""
        work = self.root / _WORK / key
        for stale in work.iterdir():
            if stale.name not in lineage["outputs"]:
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        files = {path.relative_to(work).as_posix(): path for path in sorted(work.rglob("*")) if path.is_file()}
        for path in files.values():
            path.chmod(0o444)  # outputs are hard links to these files: nobody edits them by accident
        table = {name: [path.stat().st_size, path.stat().st_mtime_ns] for name, path in files.items()}
        record = {"lineage": lineage, "files": table}
        write_atomic(work / RESULT, (json.dumps(record, sort_keys=True, allow_nan=False) + "\n").encode())
        return Entry(work.rename(self.root / key), lineage)

    def locate(self, artifact: Path, sha256: str) -> Path | None:
        """Where the store keeps the payload of ``artifact``, found by the lineage beside it; None if it does not."""
        try:
            lineage = json.loads((artifact / "lineage.json").read_text())
            key, outputs = str(lineage["key"]), dict(lineage["outputs"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        found = [self.root / key / name for name, digest in outputs.items() if digest == sha256]
        return next((path for path in found if path.is_dir()), None)

    def _remove_dead(self, but: str) -> None:
        """Remove workspaces whose process is gone and that hold no finished computation."""
        for directory in (self.root / _WORK).glob("*"):
            if directory.name == but or (directory / COMPUTED).exists():
                continue
            lock = FileLock(self.root / _LOCKS / directory.name)
            try:
                lock.take()
                shutil.rmtree(directory, ignore_errors=True)
            except Held:
                continue
            finally:
                lock.close()


def _damage(directory: Path, record: dict[str, Any]) -> str | None:
    """What is wrong with an entry, or None. Sizes and times are compared; contents only where a time differs."""
    present = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    if strangers := present - set(record["files"]) - {RESULT}:
        return f"{min(strangers)} does not belong there"
    touched = set()
    for name, (size, modified_ns) in record["files"].items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if path.stat().st_mtime_ns != modified_ns:
            touched.add(name.split("/")[0])
    for output in sorted(touched):
        if payload_sha256(directory / output) != record["lineage"]["outputs"][output]:
            return f"{output} has another hash"
    return None
