"""kill -9 while rollouts are sampled, rewarded, measured and learned from: every recovery is bit-identical."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_a_kill_in_any_phase_changes_no_bit_and_loses_no_rollout(tmp_path):
    script = Path(__file__).with_name("kill_policy.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(script), str(tmp_path), "0"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == 8
    first, *later = found["started"]
    assert first == 0 and len(later) == 8 and later == sorted(later) and min(later) > 0, "all but the first resume"
    assert any(step % 2 for step in later), "one of them in the middle of an iteration"
    assert found["same_history"] and found["same_weights"] and found["same_counts"]
    assert found["never_asked"] == 0
    assert found["asked_again"] <= found["kills"], "a kill costs the part that was under way"
