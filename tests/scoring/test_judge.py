"""Scoring in processes of their own: limits, death, and who outlives whom."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

from scoring import judge
from scoring.judge import Judges, Request, Verdict, shared_judges
from scoring.score import Score, score_answer

RIGHT = Request("numeric", "{}", "it is 8", ["8"])


@pytest.fixture(scope="module")
def judges():
    held = Judges(2, seconds=0.5, memory_mb=1024)
    yield held
    held.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_judge_gives_the_score_of_the_scorer_in_order(judges):
    texts = ["8", "9", "eight", r"<think>9</think>\boxed{8}", "x" * 100_000] * 3
    requests = [Request("numeric", "{}", text, ["8"]) for text in texts]
    scores = [score_answer("numeric", "{}", text, ["8"]) for text in texts]
    assert [Score(v.value, v.parsed) for v in judges.ask(requests)] == scores
    assert judges.ask([]) == []


def test_a_fault_of_the_row_is_told_from_a_wrong_answer(judges):
    verdicts = judges.ask([Request("bleu", "{}", "8", ["8"]), RIGHT, Request("exact", "{", "8", ["8"])])
    assert [verdict.fault for verdict in verdicts] == ["unknown scorer 'bleu'", None, "scorer parameters: not JSON"]
    assert verdicts[1] == Verdict(1.0, True)


@pytest.fixture
def scorers(tmp_path, monkeypatch):
    """Processes whose ``exact`` scorer does what an answer says."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys, time\n"
        "def hostile(prediction, answers):\n"
        "    if prediction == 'hang': sum(iter(int, 1))\n"
        "    if prediction == 'raise': raise RuntimeError('boom')\n"
        "    if prediction == 'complain': raise ValueError('not a value')\n"
        "    if prediction == 'recurse': hostile.__wrapped__ = hostile; return hostile(*[prediction, answers])\n"
        "    if prediction == 'eat': return float(len(bytearray(1 << 40)))\n"
        "    if prediction == 'die': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    if prediction == 'leave': os._exit(3)\n"
        "    if prediction == 'print': print('{}', flush=True)\n"
        "    if prediction == 'sleep': time.sleep(3600)\n"
        "    if prediction == 'stop': os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    if prediction == 'close': os.closerange(0, 64); time.sleep(3600)\n"
        "    if prediction == 'stutter':\n"
        "        frame = sys._getframe()\n"
        "        while 'replies' not in frame.f_locals: frame = frame.f_back\n"
        "        os.write(frame.f_locals['replies'].fileno(), b'{')\n"
        "        os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    return float(prediction == '8')\n"
        "if sys.argv[:1] == ['-m']:\n"
        "    import scoring.text\n"
        "    scoring.text.exact_match = hostile\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    held = Judges(1, seconds=0.3)
    yield held
    held.close()


def exact(text: str) -> Request:
    return Request("exact", "{}", text, ["8"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hang", "over 0.3 s of processor time"),
        ("raise", "RuntimeError: boom"),
        ("complain", "ValueError: not a value"),
        ("recurse", "RecursionError: maximum recursion depth exceeded"),
        ("eat", "out of memory"),
        ("die", "its process died of SIGKILL"),
        ("leave", "its process ended with status 3"),
    ],
)
def test_a_scorer_that_raises_hangs_or_dies_costs_one_answer(scorers, text, reason):
    first, failed, last = scorers.ask([exact("8"), exact(text), exact("8")])
    assert first == last == Verdict(1.0, True)
    assert (failed.value, failed.parsed, failed.fault) == (0.0, False, None)
    assert failed.failed is not None and failed.failed.startswith(reason)


@pytest.fixture
def impatient(monkeypatch):
    """Workers that are waited for no longer than 1.5 s."""
    monkeypatch.setattr("scoring.judge._CLOCK_FACTOR", 5)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["sleep", "stop", "stutter"])
def test_a_scorer_that_takes_no_processor_time_is_waited_for_by_the_clock(scorers, impatient, text):
    late = Verdict(failed="no answer within 1.5 s")
    assert scorers.ask([exact("8"), exact(text), exact("8")]) == [Verdict(1.0, True), late, Verdict(1.0, True)]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("length", [1, 1_000_000])
def test_a_process_that_is_stopped_between_two_answers_costs_one_and_another_goes_on(scorers, impatient, length):
    """A pipe holds the short answer, and not the long one."""
    before = set(children_of(os.getpid()))
    assert scorers.ask([exact("8")]) == [Verdict(1.0, True)]
    (worker,) = set(children_of(os.getpid())) - before
    os.kill(worker, signal.SIGSTOP)
    verdicts = scorers.ask([exact("9" * length), exact("8")])
    assert verdicts == [Verdict(failed="no answer within 1.5 s"), Verdict(1.0, True)]
    assert not alive(worker)


@pytest.mark.timeout(60)
def test_a_process_that_is_stopped_while_it_starts_is_replaced(monkeypatch):
    start, started = judge._child, []

    def stopped_at_first(*given):
        started.append(start(*given))
        if len(started) == 1:
            os.kill(started[0].pid, signal.SIGSTOP)
        monkeypatch.setattr("scoring.judge._START_SECONDS", 0.5 if len(started) == 1 else 60.0)
        return started[-1]

    monkeypatch.setattr("scoring.judge._child", stopped_at_first)
    held = Judges(1)
    assert held.ask([RIGHT]) == [Verdict(1.0, True)]
    assert [process.returncode for process in started] == [-signal.SIGKILL, None]
    held.close()


@pytest.mark.timeout(60)
def test_a_process_that_closes_its_output_and_lives_is_ended(scorers):
    closed = Verdict(failed="its process closed its output")
    assert scorers.ask([exact("close"), exact("8")]) == [closed, Verdict(1.0, True)]


@pytest.mark.timeout(60)
def test_a_process_that_no_signal_ends_is_left_to_the_kernel(scorers, impatient, monkeypatch):
    before = set(children_of(os.getpid()))
    assert scorers.ask([exact("8")]) == [Verdict(1.0, True)]
    (worker,) = set(children_of(os.getpid())) - before
    with monkeypatch.context() as patched:
        # As one is that waits for a disk or a network file system which does not answer.
        patched.setattr("scoring.judge.subprocess.Popen.kill", lambda self: None)
        assert scorers.ask([exact("sleep"), exact("8")])[1] == Verdict(1.0, True)
        assert alive(worker)
    os.kill(worker, signal.SIGKILL)


def test_what_a_scorer_prints_does_not_stand_between_the_verdicts(scorers):
    assert scorers.ask([exact("print"), exact("8")]) == [Verdict(0.0, True), Verdict(1.0, True)]


def test_closing_ends_the_processes_and_a_later_request_starts_others(judges):
    before = set(children_of(os.getpid()))
    held = Judges(2)
    held.ask([RIGHT, RIGHT])
    mine = set(children_of(os.getpid())) - before
    assert len(mine) == 2
    held.close()
    assert not any(alive(pid) for pid in mine)
    assert held.ask([RIGHT]) == [Verdict(1.0, True)]
    held.close()


def test_an_interrupted_question_leaves_no_verdict_for_the_next(scorers):
    def interrupt(_number, _frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    with pytest.raises(KeyboardInterrupt):
        scorers.ask([exact("8"), exact("sleep"), exact("8")])
    signal.signal(signal.SIGALRM, before)
    assert scorers.ask([exact("9")]) == [Verdict(0.0, True)]


def test_a_killed_parent_leaves_no_judge_behind():
    script = (
        "import time; from scoring.judge import Judges, Request\n"
        "held = Judges(1); held.ask([Request('exact', '', 'a', ['a'])]); print('asked', flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert parent.stdout.readline() == b"asked\n"
    workers = children_of(parent.pid)
    assert workers and all(alive(pid) for pid in workers)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not any(alive(pid) for pid in workers))


def test_a_fork_does_not_talk_into_its_parents_judge():
    assert shared_judges().ask([RIGHT]) == [Verdict(1.0, True)]
    child = os.fork()
    if child == 0:
        os._exit(0 if shared_judges().ask([RIGHT]) == [Verdict(1.0, True)] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert shared_judges().ask([RIGHT]) == [Verdict(1.0, True)]


def test_a_judge_outlives_the_thread_that_first_asked_it():
    held = Judges(1)
    first = Thread(target=held.ask, args=([RIGHT],))
    first.start()
    first.join()
    time.sleep(0.05)  # the kernel's signal would come now, or in the middle of the next answers
    before = children_of(os.getpid())
    assert held.ask([RIGHT] * 5) == [Verdict(1.0, True)] * 5
    assert children_of(os.getpid()) == before, "it is the same process"
    held.close()


def test_a_judge_that_is_killed_while_it_starts_is_started_again(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib, signal\n"
        f"place = pathlib.Path({str(tmp_path / 'started')!r})\n"
        "if not place.exists(): place.touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    held = Judges(1)
    assert held.ask([RIGHT]) == [Verdict(1.0, True)]
    held.close()


def test_a_process_that_cannot_start_is_no_answers_fault(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="did not start"):
        Judges(1).ask([RIGHT])


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"seconds": 0}, {"memory_mb": 0}])
def test_limits_are_positive(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        Judges(**wrong)


def test_without_its_library_the_scorer_of_mathematics_says_what_is_missing(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("raise ModuleNotFoundError('No module named math_verify')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    held = Judges(1)
    fault = held.ask([Request("math", "{}", "8", ["8"])])[0].fault
    held.close()
    assert fault is not None and fault.startswith("math: the package math-verify is not installed")
