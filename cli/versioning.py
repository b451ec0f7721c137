"""What DVC sees of a run: the current outputs under ``out/line``, and the lock file that describes them."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from model.data.artifact import file_sha256, link_tree
from model.data.errors import InputError

_QUIET_DVC = {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1"}


def materialise(outputs: Mapping[str, Mapping[str, Path]], line: Path) -> None:
    """Make ``line/<step>/<output>`` the newest outputs, by hard links.

    What is linked already stays untouched, so that DVC need not read it again.

    Args:
        outputs: directory of every output, by step and name.
        line: ``out/line``.
    """
    for step, directories in outputs.items():
        for name, source in directories.items():
            target = line / step / name
            if not _same_files(source, target):
                link_tree(source, target)


def _same_files(source: Path, target: Path) -> bool:
    """Whether ``target`` consists of hard links to the files of ``source`` and of nothing else."""
    if not target.is_dir():
        return False
    here = {path.relative_to(source): _inode(path) for path in _all_files(source)}
    return here == {path.relative_to(target): _inode(path) for path in _all_files(target)}


def _all_files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def commit(root: Path) -> str:
    """Write ``dvc.lock`` for what lies under ``out/line`` and put those bytes into DVC's cache.

    Returns:
        SHA-256 of ``dvc.lock``.

    Raises:
        InputError: DVC refused; its last line.
    """
    command = [sys.executable, "-m", "dvc", "commit", "--force", "--quiet"]
    environment = {**os.environ, **_QUIET_DVC}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()
        raise InputError(f"dvc commit: {lines[-1].removeprefix('ERROR: ')}")
    return file_sha256(root / "dvc.lock")
