"""A request to stop is repeated until the process is gone: one that was met must not cut short what it still says."""

import json
import os
import signal
import subprocess
import sys

import pytest

STOPPED = "stopped after step 3 of 9"
MET_AND_REPEATED = f"""
import os, signal
from model.training.stopping import Stopped, watch

def train():
    try:
        with watch():
            raise Stopped("{STOPPED}")
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
"""
STEP = """
from components.failure import reported
from components.settings import Settings

with reported("sft", Settings.from_environment()):
    train()
"""
RANK = """
import sys
from pathlib import Path
from components import rank

rank._call = lambda scratch: train()
sys.exit(rank.main(os.getppid(), Path(os.environ["FOVEA_RUN_DIR"])))
"""


@pytest.mark.parametrize(("process", "said"), [(STEP, "failure.json"), (RANK, "outcome-0.json")])
def test_a_process_that_is_asked_again_after_it_stopped_still_says_how_it_ended(tmp_path, process, said):
    surroundings = {"FOVEA_RUN_DIR": str(tmp_path), "FOVEA_RUNNER_PID": str(os.getpid())}
    ended = subprocess.run(
        [sys.executable, "-c", MET_AND_REPEATED + process],
        env=os.environ | surroundings | {"RANK": "0", "WORLD_SIZE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert STOPPED in json.loads((tmp_path / said).read_text()).values()
