"""Memory of an import does not grow with its input (1 and 10 GB: tests/soak/test_import_memory.py)."""

import pytest

from tests.import_memory import import_peak, write_noise


@pytest.mark.slow
def test_resident_memory_does_not_grow_with_the_images(tmp_path):
    """20 and 100 MB, with row groups of 2 MiB in place of 32: the same ratio as 320 and 1,600 MB in earnest."""
    peaks = {}
    for megabytes in (20, 100):
        source = write_noise(tmp_path / f"in-{megabytes}", megabytes)
        peaks[megabytes] = import_peak(source, tmp_path / f"out-{megabytes}", group_bytes=2 << 20)
    assert peaks[100]["rows"] == 100 * 10**6 // (3 * 256 * 256)
    assert peaks[100]["peak_mb"] < 1.1 * peaks[20]["peak_mb"], peaks
