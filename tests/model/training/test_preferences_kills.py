"""kill -9 at random moments of the reference's pass and of the updates: the same losses, and nothing asked twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
CHILD = """
import json, sys
from pathlib import Path
from safetensors.torch import save_file
from model.training.loop import train
from tests.model.training import prefer_on_ranks as cases
out = Path(sys.argv[1])
network, history = cases.run("killed", {"steps": 12, "micro_batch_size": 2, "drop_path_rate": 0.2}, out)
save_file({n: p.detach().contiguous() for n, p in network.named_parameters()}, out / "weights.safetensors")
(out / "history.json").write_text(json.dumps(history))
"""


def start(directory: Path) -> subprocess.Popen[bytes]:
    directory.mkdir(exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", CHILD, str(directory)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE)


def end(process: subprocess.Popen[bytes]) -> None:
    errors = process.communicate(timeout=200)[1].decode()
    assert process.returncode == 0, errors[-3000:]


def asked(directory: Path) -> dict[str, int]:
    """Names and times of the complete files of the cache."""
    return {path.name: path.stat().st_mtime_ns for path in directory.glob("cache/*.safetensors")}


def newest(directory: Path) -> int:
    """Step of the newest checkpoint."""
    return max((int(path.name[-8:]) for path in directory.glob("state/checkpoint-*")), default=0)


def kill_when(reached: Callable[[], bool], directory: Path, wait: float = 0.0) -> None:
    """Kill a new run a moment after something is there."""
    process = start(directory)
    until = time.monotonic() + 200
    while not reached():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.002)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_kills_in_the_reference_and_in_the_updates_change_no_bit(tmp_path):
    draw = random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    end(start(whole))
    kill_when(lambda: bool(asked(killed)), killed)
    kept = asked(killed)
    kill_when(lambda: newest(killed) >= 2, killed, draw.uniform(0, 0.1))
    first = newest(killed)
    kill_when(lambda: newest(killed) > first + 1, killed, draw.uniform(0, 0.1))
    end(start(killed))
    assert kept and kept.items() <= asked(killed).items(), "what was asked is not asked again"
    assert json.loads((killed / "history.json").read_text()) == json.loads((whole / "history.json").read_text())
    assert (killed / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
