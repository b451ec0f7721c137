"""Memory that is freed goes back to the system while media of all sizes pass through."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc, malloc.h
_SMALL = 64 << 10
_USUAL = 32 << 20  # where glibc's own adjustment ends, once large blocks have come and gone


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Have blocks of 64 KiB and more mapped one by one, so that they are gone when they are freed.

    An allocator keeps what is freed and takes more where a new block fits in no hole: an import then peaks anywhere
    between 450 and 670 MB, the higher the longer it runs. So it peaks at 400 MB, whatever the input. (Arrow allocates
    with malloc in this step: see ``step.py``.) Elsewhere than under glibc nothing is changed.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is None:
        yield
        return
    tune(_M_MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        # Mapping every block would slow a network that trains in this process later.
        tune(_M_MMAP_THRESHOLD, _USUAL)
        tune(_M_TRIM_THRESHOLD, 2 * _USUAL)
