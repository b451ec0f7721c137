"""What a step's surroundings write and understand: progress, and a full disk."""

import errno
import json
import os
from pathlib import Path

from components.failure import full_disk
from components.progress import ProgressFile
from components.settings import Settings


def test_a_library_that_wraps_a_full_disk_is_understood():
    settings = Settings.at(Path("out"))
    try:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RuntimeError("cannot write tensors") from error
    except RuntimeError as error:
        assert full_disk(error, settings)
    assert full_disk(RuntimeError("SafetensorError: No space left on device (os error 28)"), settings)
    assert full_disk(RuntimeError("no"), settings) is None


def test_progress_is_written_at_the_end_and_seldom_in_between(tmp_path):
    report = ProgressFile(tmp_path, "toy")
    report("training", 0, 1000)
    first = json.loads((tmp_path / "progress.json").read_text())
    for done in range(1, 1000):
        report("training", done, 1000)
    between = json.loads((tmp_path / "progress.json").read_text())
    report("training", 1000, 1000)
    last = json.loads((tmp_path / "progress.json").read_text())
    assert first["done"] == 0 and last["done"] == last["total"] == 1000
    assert between["done"] < 1000 and between["started"] == first["started"]
    assert last["step"] == "toy" and last["label"] == "training" and last["updated"] >= last["started"]
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]
