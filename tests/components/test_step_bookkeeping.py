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


def test_parts_of_the_work_do_not_hide_how_far_it_is(tmp_path, monkeypatch):
    """Iterations that take turns with their rollouts would each begin anew, and nothing would ever be worth showing."""
    clock = iter(range(100, 200))
    monkeypatch.setattr("components.progress.time.time", lambda: next(clock))
    report = ProgressFile(tmp_path, "gspo")

    def told(label, done, total):
        report(label, done, total)
        return json.loads((tmp_path / "progress.json").read_text())

    assert told("loading", 1, 2)["label"] == "loading"
    assert told("gspo", 0, 3) | {"updated": 0} == {
        "step": "gspo",
        "label": "gspo",
        "done": 0,
        "total": 3,
        "detail": "",
        "started": 101,
        "updated": 0,
    }
    for iteration in range(3):
        inner = told(f"rollout {iteration + 1}", 48, 48)
        assert (inner["label"], inner["done"], inner["total"], inner["started"]) == ("gspo", iteration, 3, 101)
        assert inner["detail"] == f"rollout {iteration + 1} 48/48"
        outer = told("gspo", iteration + 1, 3)
        assert (outer["done"], outer["detail"], outer["started"]) == (iteration + 1, "", 101)
    after = told("answering", 8, 64)
    assert (after["label"], after["done"], after["detail"]) == ("answering", 8, "")
