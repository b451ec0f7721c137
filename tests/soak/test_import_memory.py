"""Imports of 50 MB to 10 GB: resident memory stays within 10 %. Writes the figures to out/soak."""

import datetime
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.import_memory import import_peak, write_noise

pytestmark = pytest.mark.soak
SIZES = [int(size) for size in os.environ.get("FOVEA_SOAK_IMPORT_MB", "50,500,1000,10000").split(",")]


def test_resident_memory_is_flat_up_to_ten_gigabytes(tmp_path):
    peaks = {}
    for megabytes in SIZES:
        source = write_noise(tmp_path / "in", megabytes)
        peaks[megabytes] = import_peak(source, tmp_path / "out")["peak_mb"]
        shutil.rmtree(tmp_path / "in")
        shutil.rmtree(tmp_path / "out")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    path = Path(__file__).parents[2] / "out" / "soak" / f"import-memory-{today}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"date": today, "peak_mb_by_input_mb": peaks}) + "\n")
    assert max(peaks.values()) < 1.1 * min(peaks.values()), peaks
