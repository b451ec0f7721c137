"""What produced an output, beside its inputs: the machine and the revisions."""

import hashlib
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from components.settings import REPOSITORY, Settings
from model.data.errors import InputError
from model.machine import processor

# The instruction sets that decide the last bits of a sum, as Linux names them.
_INSTRUCTION_SETS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16")
_NONE = "none"


@cache
def lock_sha256() -> str:
    """SHA-256 of the compiled requirements: the version of everything that is not this repository."""
    path = REPOSITORY / "requirements" / "line.txt"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise InputError(f"{path} is missing: it is part of every step's identity") from None


def environment() -> dict[str, Any]:
    """Python, processor and threads of this process: what bit-identical results hang on."""
    return {"python": platform.python_version(), "cpu": _cpu(), "threads": _threads()}


def _cpu() -> dict[str, Any]:
    name, flags = processor()
    return {
        "model": name or platform.machine(),
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
    }


def _threads() -> int:
    pinned = os.environ.get("OMP_NUM_THREADS", "")
    return int(pinned) if pinned.isdigit() else len(os.sched_getaffinity(0))


def revisions(settings: Settings) -> dict[str, str]:
    """The tags that every run carries, all but the code version. What is not known is ``none``."""
    return {
        "dvc_rev": os.environ.get("FOVEA_DVC_REV") or _file_sha(REPOSITORY / "dvc.lock"),
        "git_sha": os.environ.get("FOVEA_GIT_SHA") or _git_sha(),
        "kfp_run_id": os.environ.get("KFP_RUN_ID") or settings.run_id or _NONE,
        "image_digest": os.environ.get("FOVEA_IMAGE_DIGEST") or _NONE,
        "profile": settings.profile or _NONE,
    }


def _file_sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else _NONE


@cache
def _git_sha() -> str:
    """HEAD of the repository, with ``-dirty`` behind it if tracked files differ."""
    if not (REPOSITORY / ".git").exists():
        return _NONE
    try:
        described = subprocess.run(
            [
                "git",
                "--no-optional-locks",
                "-C",
                str(REPOSITORY),
                "describe",
                "--always",
                "--abbrev=40",
                "--dirty",
                "--exclude=*",
            ],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return _NONE
    return described.stdout.strip()
