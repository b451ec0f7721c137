"""``fovea status`` on the files that runs leave: going on, finished, failed, killed, half-written."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.dashboard import lock_holder, newest_run, read_dashboard, render, sparkline
from cli.main import app
from cli.training_log import read_training
from components.lock import FileLock
from components.progress import MetricsFile, ProgressFile, append_line

PLANNED = ("collect", "curate", "pretrain", "sft")
GIB = 1 << 30


def training_record(step, **changes):
    """A record as model/training/metrics.py makes it."""
    record = {
        "stage": "sft",
        "step": step,
        "steps": 100,
        "loss": 5.0 - 0.03 * step,
        "grad_norm": 0.5,
        "learning_rate": 1e-3,
        "tokens": 500,
        "seconds": 0.25,
        "tokens_per_second": 2000.0,
        "mfu": 0.4,
        "memory_bytes": 3 * GIB,
        "data_wait_seconds": 0.05,
        "padding_share": 0.3,
    }
    return record | changes


class Run:
    """The directory of a pipeline run, written as the runner writes it."""

    def __init__(self, out: Path, run_id: str = "20261120-101112-abcd") -> None:
        self.out, self.directory = out, out / "runs" / run_id
        self.directory.mkdir(parents=True)
        (self.directory / "pipeline.json").write_text(json.dumps({"configs": dict.fromkeys(PLANNED, "{}")}))

    def finish(self, *steps: str, cached: bool = False) -> None:
        for step in steps:
            record = {"step": step, "key": f"{step}0123456789abcdef", "cached": cached, "seconds": 65.0, "outputs": {}}
            append_line(self.directory / "steps.jsonl", record)

    def train(self, task: str = "sft", steps: int = 40, **changes) -> None:
        write = MetricsFile(self.directory, task)
        for step in range(1, steps + 1):
            write(training_record(step, **changes))

    def progress(self, step: str, label: str, done: int, total: int) -> None:
        ProgressFile(self.directory, step)(label, done, total)

    def fail(self) -> None:
        failure = {"step": "sft", "error": "row 3: no answer", "log": "log.txt", "resume": "fovea run"}
        (self.directory / "failure.json").write_text(json.dumps(failure))

    def read(self):
        return read_dashboard(self.directory, self.out / "run.lock")

    def text(self, unicode: bool = True) -> list[str]:
        return render(self.read(), unicode=unicode)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "out")


@pytest.fixture
def going_on(run):
    """Its lock is held, by this process."""
    lock = FileLock(run.out / "run.lock")
    lock.take()
    yield run
    lock.close()


def test_a_run_that_trains_is_told_step_by_step_and_number_by_number(going_on):
    going_on.finish("collect", cached=True)
    going_on.finish("curate", "pretrain")
    going_on.train(steps=40)
    going_on.progress("sft", "sft", 40, 100)
    head, collect, _, pretrain, *sft = going_on.text()
    assert head.startswith("run 20261120-101112-abcd: running for ")
    assert head.endswith(f", process {os.getpid()}")
    assert collect == "  collect           from the store  key collect01234"
    assert pretrain.startswith("  pretrain          1 min 05 s")
    assert sft[0].startswith("  sft               step 40 of 100 (40%), ")
    assert sft[0].endswith(" so far, 15 s left")
    curve = sparkline([5 - 0.03 * step for step in range(1, 41)])
    assert sft[1:] == [
        f"    loss          3.8000      {curve} from 4.9700 in 40 steps",
        "    learning rate 1.00e-03    gradient norm 0.5",
        "    tokens/s      2,000       MFU           40.0%",
        "    data wait     20.0%       padding       30.0%",
        "    peak memory   3.00 GiB",
    ]


def test_what_a_stage_says_of_its_steps_is_shown_below_its_loss(going_on):
    write = MetricsFile(going_on.directory, "gspo")
    write(training_record(1, stage="gspo", reward=0.25, clipped_low=0.5))
    write(training_record(2, stage="gspo", reward=0.75, clipped_low=float("nan"), unheard_of=3))
    going_on.progress("gspo", "gspo", 2, 100)
    lines = going_on.text(unicode=False)
    assert [line.split() for line in lines[-2:]] == [
        ["reward", "0.75", "_@", "from", "0.25"],
        ["clipped", "below", "0.5", "_", "from", "0.5"],
    ]


def test_a_finished_policy_is_summed_up_by_its_reward(run):
    run.train("gspo", 2, stage="gspo", reward=0.5)
    run.finish("gspo")
    assert "    reward 0.5 __ from 0.5; 2,000 tokens/s, MFU 40.0%" in run.text(unicode=False)


def test_a_step_that_trained_and_now_scores_says_both(going_on):
    going_on.finish("collect", "curate")
    going_on.train("pretrain", 7, stage="warmup")
    going_on.progress("pretrain", "warmup", 7, 100)
    assert "  pretrain          warmup step 7 of 100 (7%), " in going_on.text()[3]
    going_on.progress("pretrain", "answering", 3, 40)
    assert "  pretrain          answering 3 of 40 (8%), " in going_on.text()[3]
    assert going_on.text()[4] == "    warmup ended at step 7 of 100"


def test_steps_to_come_are_named_while_it_runs_and_only_then(run):
    run.finish("collect")
    lock = FileLock(run.out / "run.lock")
    lock.take()
    assert run.text()[2:] == [
        "  curate            to come",
        "  pretrain          to come",
        "  sft               to come",
    ]
    lock.close()
    assert [line.split()[0] for line in run.text()] == ["run", "collect"]


def test_what_was_not_measured_is_a_dash(going_on):
    going_on.train(steps=3, mfu=None, memory_bytes=None)
    going_on.progress("sft", "sft", 3, 100)
    text = "\n".join(going_on.text())
    assert "MFU           -" in text
    assert "peak memory   -" in text


def test_a_finished_run_keeps_one_line_of_its_training(run):
    run.finish(*PLANNED)
    run.train(steps=100)
    lines = run.text()
    assert lines[0].startswith("run 20261120-101112-abcd: finished in ")
    assert lines[-1].startswith("    loss 2.0000 ")
    assert lines[-1].endswith(" from 3.7700 in 60 steps; 2,000 tokens/s, MFU 40.0%")
    assert "left" not in "\n".join(lines)


def test_a_failed_run_says_what_was_wrong_and_how_to_go_on(run):
    run.finish("collect")
    run.fail()
    run.progress("sft", "sft", 3, 100)
    lines = run.text()
    assert ": failed after " in lines[0]
    assert "not finished" in lines[2]
    assert lines[-2:] == ["  sft: row 3: no answer", "  log: log.txt; to continue: fovea run"]


def test_a_killed_run_is_not_running(run):
    FileLock(run.out / "run.lock").close()
    (run.out / "run.lock").write_text("1")  # init lives, but holds no lock of ours
    run.finish("collect")
    run.progress("curate", "hashing", 3, 9)
    assert ": stopped after " in run.text()[0]
    assert run.read().pid is None


def test_a_part_of_a_steps_work_does_not_end_its_training(going_on, monkeypatch):
    monkeypatch.setattr("components.progress._MIN_SECONDS", 0.0)
    going_on.train("sft", steps=3)
    report = ProgressFile(going_on.directory, "sft")
    report("sft", 3, 40)
    report("rollout 4", 8, 48)
    (said,) = (line for line in going_on.text() if line.startswith("  sft"))
    assert "step 3 of 40 (8%), rollout 4 8/48, " in said
    assert not any("ended at" in line for line in going_on.text())


def test_silence_is_said(going_on):
    long_ago = time.time() - 300
    record = {"step": "sft", "label": "sft", "done": 1, "total": 9, "started": long_ago, "updated": long_ago}
    (going_on.directory / "progress.json").write_text(json.dumps(record))
    assert "    no news for 5 min 00 s" in going_on.text()


def test_a_lock_is_seen_without_being_taken(tmp_path):
    path = tmp_path / "run.lock"
    assert lock_holder(path) is None
    lock = FileLock(path)
    assert lock_holder(path) is None
    lock.take()
    assert lock_holder(path) == os.getpid()
    lock.close()
    assert lock_holder(path) is None


def test_steps_that_were_done_again_after_a_kill_count_once(run):
    run.train(steps=10)
    write = MetricsFile(run.directory, "sft")
    write(training_record(8, loss=1.0))
    training = read_training(run.directory / "training.jsonl")["sft"]
    assert training.step == 8
    assert len(training.losses) == 8
    assert training.losses[-1] == 1.0


def test_the_newest_stage_of_a_step_is_shown(run):
    run.train("pretrain", 5, stage="warmup")
    run.train("pretrain", 2, stage="pretrain")
    training = read_training(run.directory / "training.jsonl")
    assert list(training) == ["pretrain"]
    assert (training["pretrain"].stage, training["pretrain"].step) == ("pretrain", 2)


def test_the_file_of_records_stays_small_and_keeps_the_newest(tmp_path):
    write = MetricsFile(tmp_path, "sft", limit_bytes=4000)
    for step in range(1, 201):
        write(training_record(step))
        assert (tmp_path / "training.jsonl").stat().st_size <= 4000
    assert read_training(tmp_path / "training.jsonl")["sft"].step == 200
    assert [path.name for path in tmp_path.iterdir()] == ["training.jsonl"]


def test_a_full_disk_under_the_records_fails_no_step(tmp_path):
    MetricsFile(tmp_path / "gone", "sft")(training_record(1))
    MetricsFile(None, "sft")(training_record(1))
    assert list(tmp_path.iterdir()) == []


@given(cut=st.integers(0, 4000), junk=st.binary(max_size=40))
def test_half_written_and_odd_files_never_break_the_view(tmp_path_factory, cut, junk):
    run = Run(tmp_path_factory.mktemp("odd"))
    run.finish("collect")
    run.train(steps=10)
    run.progress("sft", "sft", 10, 100)
    for name in ("training.jsonl", "steps.jsonl", "progress.json", "pipeline.json"):
        path = run.directory / name
        path.write_bytes(path.read_bytes()[:cut] + junk)
    (run.directory / "failure.json").write_bytes(junk)
    assert run.text()[0].startswith("run ")


@pytest.mark.parametrize("change", [{"loss": "much"}, {"seconds": 0}, {"loss": float("nan")}, {"tokens": None}])
def test_an_odd_value_is_left_out(run, change):
    run.train(steps=3, **change)
    run.progress("sft", "sft", 3, 100)
    json.dumps(run.read().record(), allow_nan=False)
    assert len(run.text()) > 5


def test_a_curve_rises_with_its_values():
    assert sparkline([1, 2, 3, None, 8], "01234567") == "012 7"
    assert sparkline([3.0, 3.0], "01234567") == "00"
    assert sparkline([]) == ""


def test_a_terminal_without_unicode_gets_ascii(going_on):
    going_on.train(steps=40)
    going_on.progress("sft", "sft", 40, 100)
    assert "\n".join(going_on.text(unicode=False)).isascii()
    assert not "\n".join(going_on.text()).isascii()


def test_the_newest_run_is_looked_at(tmp_path):
    assert newest_run(tmp_path) is None
    Run(tmp_path, "20261120-101112-abcd")
    newer = Run(tmp_path, "20261121-000000-0000")
    assert newest_run(tmp_path) == newer.directory


def test_the_command_prints_it_plainly_and_as_json(going_on, monkeypatch):
    monkeypatch.setenv("FOVEA_OUT", str(going_on.out))
    going_on.finish("collect")
    going_on.train(steps=4)
    going_on.progress("sft", "sft", 4, 100)
    printed = CliRunner().invoke(app, ["status"]).output
    assert "\x1b" not in printed
    assert "step 4 of 100" in printed
    last = json.loads(CliRunner().invoke(app, ["status", "--json"]).output)["last_run"]
    assert (last["state"], last["pid"], last["planned"]) == ("running", os.getpid(), list(PLANNED))
    assert last["steps"][0]["step"] == "collect"
    assert last["training"]["sft"]["tokens_per_second"] == 2000
    assert last["current"]["done"] == 4


def test_looking_imports_no_torch_and_needs_no_terminal(run):
    run.train(steps=4)
    script = "import sys; from cli.main import app; app(['status'], standalone_mode=False); print(*sys.modules)"
    environment = os.environ | {"FOVEA_OUT": str(run.out), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert {"torch", "transformers", "kfp"}.isdisjoint(done.stdout.split())
