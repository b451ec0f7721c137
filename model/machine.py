"""What the processor of this machine can do.

Uses the standard library only and runs on Python 3.7, because preflight reads it before anything is installed.
"""

from __future__ import annotations

import os
from pathlib import Path

_MULTIPLY_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""As Linux names them, on x86-64 and on arm64. Without one of them a product of bfloat16 matrices takes tens of
times as long as in float32."""
_NVIDIA = Path("/dev/nvidiactl")


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, frozenset[str]]:
    """Its name and the names of its instruction sets; an empty name and none where the kernel does not say."""
    name, flags = "", frozenset()
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return name, flags
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            return name, frozenset(value.split())
    return name, flags


def computes_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 here: the processor has instructions for it, or there is a GPU to use."""
    gpu = _NVIDIA.exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1")
    return gpu or not _MULTIPLY_BFLOAT16.isdisjoint(processor()[1])
