"""A hundred kills of the line: whatever dies whenever, the same command continues, and the bytes do not change."""

import datetime
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.repository_copy import RepositoryCopy, processes_with

pytestmark = pytest.mark.soak
KILLS = int(os.environ.get("FOVEA_SOAK_KILLS", "100"))
LONGEST_SECONDS = 40.0


def hashes(record: dict) -> dict[str, str]:
    """Payload hash of every stored output. gate, register and deploy see a registry that has grown."""
    stored = [step for step in record["steps"] if step["step"] not in ("gate", "register", "deploy")]
    return {f"{s['step']}/{name}": output["sha256"] for s in stored for name, output in s["outputs"].items()}


def test_a_line_that_is_killed_again_and_again_gives_the_same_bytes(micro_line, tmp_path):
    draw, wanted, finished, killed = random.Random(0), hashes(micro_line.record), 0, 0
    copy = RepositoryCopy.make(tmp_path / "killed", "micro")
    while killed < KILLS:
        process = copy.start("run", "--json")
        try:
            output, errors = process.communicate(timeout=draw.uniform(0.5, LONGEST_SECONDS))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
            until = time.monotonic() + 10
            while processes_with(str(copy.root)) and time.monotonic() < until:
                time.sleep(0.1)
            assert processes_with(str(copy.root)) == []
            continue
        assert process.returncode == 0, errors
        assert hashes(json.loads(output)) == wanted
        finished += 1
        copy = RepositoryCopy.make(tmp_path / f"killed-{finished}", "micro")
    assert hashes(copy.fovea("run")) == wanted
    note(killed, finished + 1)


def note(kills: int, lines: int) -> None:
    """The dated result, beside the other outputs."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    path = Path(__file__).parents[2] / "out" / "soak" / f"kills-{today}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"date": today, "kills": kills, "lines_finished": lines, "differences": 0}) + "\n")
