"""The result format of the benchmarks, and what the overhead's two sides read."""

import datetime
import json
import time

import pytest

from benchmarks import harness, pipeline_overhead
from model.data.errors import InputError

FIELDS = {"name", "unit", "ours", "peer", "ratio", "spread", "aim", "hardware", "commit", "date", "command"}


def report(tmp_path, capsys, *flags):
    measured = harness.result("overhead", "s", [3.0, 1.0, 2.0], [1.0, 1.0, 4.0], ratio=0.5, aim=0.5)
    harness.report(measured, harness.arguments("", list(flags)), results=tmp_path)
    return capsys.readouterr().out


def test_json_is_the_last_line_and_has_the_published_fields(tmp_path, capsys):
    line = json.loads(report(tmp_path, capsys, "--json").splitlines()[-1])
    assert set(line) >= FIELDS
    assert (line["ours"], line["peer"]) == (2.0, 1.0)
    assert line["spread"] == {"ours": [3.0, 1.0, 2.0], "peer": [1.0, 1.0, 4.0]}
    assert list(tmp_path.iterdir()) == []


def test_write_stores_a_dated_file(tmp_path, capsys):
    report(tmp_path, capsys, "--write")
    (file,) = tmp_path.iterdir()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    assert file.name == f"overhead-{today}.json"
    assert json.loads(file.read_text())["date"] == today


def test_the_task_starts_when_kfps_log_says_so(tmp_path):
    now = datetime.datetime.now().astimezone().replace(microsecond=250_000)
    (tmp_path / "log.txt").write_text(
        f"{now:%H:%M:%S}.100 - INFO - Executing task \x1b[96m'pretrain'\x1b[0m\n"
        f"{now:%H:%M:%S}.250 - INFO - Executing task \x1b[96m'sft'\x1b[0m\n"
    )
    assert pipeline_overhead._task_start(tmp_path) == pytest.approx(now.timestamp())
    (tmp_path / "log.txt").write_text("nothing\n")
    with pytest.raises(InputError, match="does not say"):
        pipeline_overhead._task_start(tmp_path)


def test_the_first_batch_is_when_the_training_loop_began(tmp_path):
    assert pipeline_overhead._first_batch(tmp_path) is None
    state = {"step": "sft", "label": "starting", "done": 0, "total": 0, "started": time.time(), "updated": time.time()}
    (tmp_path / "progress.json").write_text(json.dumps(state))
    assert pipeline_overhead._first_batch(tmp_path) is None
    (tmp_path / "progress.json").write_text(json.dumps(state | {"label": "sft", "started": 7.0}))
    assert pipeline_overhead._first_batch(tmp_path) == 7.0
