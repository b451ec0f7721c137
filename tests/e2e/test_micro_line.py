"""The whole line on ``micro``, for real: clean clone, same bytes through DVC, Ctrl-C, a full disk, the demo."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cli.summary import Summary
from model.data.artifact import file_sha256, payload_sha256
from pipelines.profile import load_profile
from tests.repository_copy import RepositoryCopy, processes_with

pytestmark = [pytest.mark.line, pytest.mark.timeout(1800), pytest.mark.xdist_group("line")]
STEPS = list(load_profile("micro").line)
STORED = STEPS[: STEPS.index("gate")]


def test_the_line_finishes_and_the_clone_stays_clean(micro_line):
    record = micro_line.record
    assert record["ok"]
    assert [step["step"] for step in record["steps"]] == STEPS
    assert record["dvc_lock_sha256"] == file_sha256(micro_line.root / "dvc.lock")
    for step in record["steps"]:
        for name, output in step["outputs"].items():
            assert payload_sha256(micro_line.root / "out" / "line" / step["step"] / name) == output["sha256"]
    assert micro_line.git("status", "--porcelain") == ""


@pytest.mark.slow
def test_dvc_repro_in_another_clone_makes_the_same_bytes(micro_line, tmp_path):
    other = RepositoryCopy.make(tmp_path / "other", "micro")
    done = subprocess.run(
        ["dvc", "repro"], cwd=other.root, env=other.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    for step in micro_line.record["steps"]:
        if step["step"] in STORED:
            for name, output in step["outputs"].items():
                assert payload_sha256(other.root / "out" / "line" / step["step"] / name) == output["sha256"], step


def wait_for_step(runs: Path, step: str, known: set[Path]) -> None:
    """Return when a run that is not ``known`` has reported progress of ``step``."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        for file in set(runs.glob("*/progress.json")) - known:
            if json.loads(file.read_text())["step"] == step:
                return
        time.sleep(0.1)
    raise TimeoutError(f"{step} never started")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_no_process_and_says_how_to_continue(micro_line, number):
    runs, seed = micro_line.root / "out" / "runs", f"pretrain.training.seed={1000 + number}"
    known = set(runs.glob("*/progress.json"))
    process = micro_line.start("run", "--quiet", "--set", seed)
    wait_for_step(runs, "pretrain", known)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert output == ""
    log = max(runs.iterdir()) / "log.txt"
    assert log.exists()
    assert errors.strip().splitlines() == [
        f"fovea: interrupted in pretrain; log: {log}; what is done is kept; to continue: fovea run --quiet --set {seed}"
    ]
    assert processes_with(str(micro_line.root)) == []


def test_a_full_disk_is_one_line(micro_line, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("NOT CHECKED: a small tmpfs needs root")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("NOT CHECKED: no tmpfs can be mounted here")
    try:
        process = micro_line.start("run", "--quiet", FOVEA_OUT=str(small / "out"))
        output, errors = process.communicate(timeout=300)
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
    assert process.returncode != 0
    assert len(errors.strip().splitlines()) == 1, errors
    assert "no space left on" in errors
    assert "Traceback" not in output + errors


def test_a_demo_serves_what_the_line_made_and_sums_it_up(micro_line):
    printed = micro_line.fovea("demo")
    directory = micro_line.root / "out" / "demo"
    assert json.loads((directory / "summary.json").read_text()) == printed
    summary = Summary.model_validate(printed)
    assert [stage.name for stage in summary.stages] == STEPS
    assert summary.cached_steps == STORED
    trained = [stage for stage in summary.stages if stage.tokens]
    assert [stage.name for stage in trained] == ["pretrain", "sft", "mpo", "gspo", "vico", "route"]
    assert all(stage.heldout for stage in trained)
    assert all(stage.loss > 0 for stage in trained if stage.name != "gspo")  # a policy's loss is around zero
    evaluated = next(stage for stage in summary.stages if stage.name == "evaluate")
    assert all(0 <= score.low <= score.score <= score.high <= 1 for score in evaluated.heldout.values())
    assert summary.dvc.lock_sha256 == file_sha256(micro_line.root / "dvc.lock")
    assert summary.answer.endpoint.startswith("http://127.0.0.1:")
    assert summary.answer.question and summary.answer.truth
    assert "</html>" in (directory / "report.html").read_text()
    assert processes_with(str(micro_line.root)) == []
