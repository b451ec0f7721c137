"""What ``make demo`` looks at before it installs anything: Python, disk, memory, download, minutes, GPU.

Runs from a bare ``python3``, so it uses the standard library only and parses on any Python 3.7 or later: the
wrong Python gets a clear line, not a syntax error.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from model.machine import computes_bfloat16

OLDEST, NEWEST = (3, 11), (3, 12)
ENVIRONMENT_GIB = 6.0
"""Size of .venv; the pinned PyTorch build carries its CUDA libraries."""
OUTPUT_GIB = 1.0
DOWNLOAD_GIB = 3.0
MEMORY_GIB = 4.0
"""Largest resident set of the tiny line and its three servers, rounded up."""


class Check:
    """One line of the table: what was looked at, what was found, and why it stops the demo if it does."""

    def __init__(self, name: str, found: str, problem: str = "") -> None:
        self.name = name
        self.found = found
        self.problem = problem


def check_python(version: tuple[int, int, int]) -> Check:
    """The interpreter that will make the environment."""
    found = "{}.{}.{}".format(*version)
    if OLDEST <= version[:2] <= NEWEST:
        return Check("Python", found)
    return Check("Python", found, f"Python 3.11 or 3.12 is needed, this is {found}; try: make demo PYTHON=python3.11")


def check_platform(system: str, machine: str) -> Check:
    """Linux on x86-64 is what the pinned wheels are for."""
    found = f"{system} {machine}"
    if system == "Linux" and machine == "x86_64":
        return Check("platform", found)
    return Check("platform", found, f"Linux on x86_64 is needed, this is {found}")


def check_disk(free_gib: float, installed: bool) -> Check:
    """Space for the environment (unless it is there) and for what the line writes."""
    needed = OUTPUT_GIB + (0.0 if installed else ENVIRONMENT_GIB)
    found = f"{free_gib:.0f} GiB free"
    return Check("disk", found, "" if free_gib >= needed else f"{needed:.0f} GiB are needed, {free_gib:.1f} are free")


def available_memory_gib(meminfo: Path = Path("/proc/meminfo")) -> float | None:
    """Memory that a new process can have, in GiB; None where the kernel does not say."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(values[0]) / (1 << 20) if values else None


def check_memory(available_gib: float | None) -> Check:
    """Memory for training, and for three servers beside each other."""
    if available_gib is None:
        return Check("memory", "unknown")
    enough = available_gib >= MEMORY_GIB
    problem = "" if enough else f"{MEMORY_GIB:.0f} GiB are needed, {available_gib:.1f} are available"
    return Check("memory", f"{available_gib:.0f} GiB available", problem)


def check_work(installed: bool, cores: int, bfloat16: bool) -> list[Check]:
    """What is still to be downloaded, and how long the whole takes: longer where nothing computes in ``bfloat16``."""
    download = "nothing, .venv is there" if installed else f"about {DOWNLOAD_GIB:.0f} GiB of packages"
    minutes = (18 if bfloat16 else 60) * (1 if cores >= 2 else 2)
    why = "" if bfloat16 else " without bfloat16 instructions"
    first = "" if installed else ", after 1 to 5 for the installation"
    return [
        Check("download", download),
        Check("time", f"about {minutes} minutes on {cores} cores{why} the first time{first}"),
    ]


def gpu_name() -> str | None:
    """The first NVIDIA GPU as its driver names it, or None."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = answer.stdout.strip().splitlines()
    return lines[0] if answer.returncode == 0 and lines else None


def check_gpu(name: str | None, visible: str | None) -> Check:
    """Whether a GPU will be used; ``visible`` is CUDA_VISIBLE_DEVICES, where it is set."""
    if name is None:
        return Check("GPU", "none, and none is needed")
    if visible in ("", "-1"):
        return Check("GPU", f"{name}, not used: CUDA_VISIBLE_DEVICES hides it")
    return Check("GPU", f"{name}, used for training and scoring (CUDA_VISIBLE_DEVICES= keeps to the CPU)")


def preflight(root: Path, installed: bool) -> list[Check]:
    """Every check, for the checkout at ``root``, whose environment is there or not."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [
        check_python(tuple(sys.version_info[:3])),
        check_platform(platform.system(), platform.machine()),
        check_disk(shutil.disk_usage(root).free / (1 << 30), installed),
        check_memory(available_memory_gib()),
        *check_work(installed, cores, computes_bfloat16()),
        check_gpu(gpu_name(), os.environ.get("CUDA_VISIBLE_DEVICES")),
    ]


def main() -> int:
    """Print the table; 1 when something stops the demo."""
    root = Path(__file__).resolve().parent.parent
    checks = preflight(root, (root / ".venv" / ".line").exists())
    print("This machine")
    for check in checks:
        print(f"  {check.name:<9} {check.found}")
    problems = [check.problem for check in checks if check.problem]
    for problem in problems:
        print(f"fovea: error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
