"""kill -9 at random moments of a packed, augmented, mixed training: every recovery is bit-identical."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


def kill_training(out: Path, kills: int, seed: int) -> dict:
    """What ``kill_training.py`` found."""
    script = Path(__file__).with_name("kill_training.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(script), str(out), str(kills), str(seed)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_five_kills_at_random_moments_change_no_bit(tmp_path):
    found = kill_training(tmp_path, kills=5, seed=0)
    assert found["kills"] == 5
    assert found["resumed_from"][-1] > 0, "some of them resumed from a checkpoint"
    assert found["same_history"]
    assert found["same_weights"]
