"""What the command line says about running work, from files that a runner would write."""

import json
import time

import pytest

from cli.progress import ProgressView, RateMeter, Update, choose_mode, in_words, read_update


def update(done, updated, total=100, label="sft", started=1000.0):
    return Update("sft", label, done, total, "", started, updated)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations_are_said_as_a_person_says_them(seconds, words):
    assert in_words(seconds) == words


def test_rate_and_time_left_count_from_where_the_work_was_resumed():
    meter = RateMeter()
    assert meter.describe(update(60, 1001.0)) == ""
    assert meter.describe(update(80, 1011.0)) == "2.0/s, 10 s left"
    assert meter.describe(update(0, 1012.0, label="scoring")) == ""


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"step": "sft"}'])
def test_a_progress_file_that_is_missing_or_odd_is_no_progress(tmp_path, text):
    if text is not None:
        (tmp_path / "progress.json").write_text(text)
    assert read_update(tmp_path) is None


def write(run_dir, **fields):
    now = time.time()
    state = {
        "step": "sft",
        "label": "train",
        "done": 3,
        "total": 9,
        "detail": "",
        "started": now - 5,
        "updated": now,
    } | fields
    (run_dir / "progress.json").write_text(json.dumps(state))


def said(run_dir, capsys, mode, **fields):
    write(run_dir, **fields)
    with ProgressView(run_dir, mode):
        time.sleep(0.6)
    return capsys.readouterr()


def test_lines_for_a_log_name_step_and_count(tmp_path, capsys):
    output = said(tmp_path, capsys, "lines")
    assert output.err == "sft: train 3/9\n"
    assert output.out == ""


def test_a_label_that_repeats_the_step_is_said_once(tmp_path, capsys):
    assert said(tmp_path, capsys, "lines", label="sft").err == "sft 3/9\n"


def test_a_part_of_the_work_stands_behind_the_count(tmp_path, capsys):
    assert said(tmp_path, capsys, "lines", label="sft", detail="rollout 4 8/48").err == "sft 3/9, rollout 4 8/48\n"


def test_work_of_unknown_length_has_no_count(tmp_path, capsys):
    assert said(tmp_path, capsys, "lines", label="starting", done=0, total=0).err == "sft: starting\n"


def test_short_and_finished_work_is_not_shown(tmp_path, capsys):
    assert said(tmp_path, capsys, "lines", started=time.time()).err == ""
    assert said(tmp_path, capsys, "lines", done=9).err == ""


def test_bars_are_for_terminals_and_quiet_is_quiet(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert choose_mode(False, False) == "bar"
    assert choose_mode(True, False) == choose_mode(False, True) == "none"
    output = said(tmp_path, capsys, "none")
    assert (output.out, output.err) == ("", "")


def test_a_bar_is_drawn_with_its_count(tmp_path):
    import io

    from rich.console import Console

    screen = io.StringIO()
    write(tmp_path)
    with ProgressView(tmp_path, "bar", Console(file=screen, force_terminal=True, width=120)):
        time.sleep(0.8)
    assert "sft: train" in screen.getvalue()
    assert "3/9" in screen.getvalue()
