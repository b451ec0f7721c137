"""Build preferences in children that are killed or told to stop, and then in one that ends: ``MODEL ROWS OUT KILLS``.

One process imports everything and forks the children, so that a kill costs a moment and not an import. Prints
``{"kills", "chunks", "seconds"}``: how many chunks of answers lay there after each kill, and how long the slowest took.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from components.build_preferences import sampling
from components.build_preferences.step import run
from components.context import StepContext
from components.failure import reported
from components.settings import Settings
from tests.tiny_rollouts import SMALL

torch.set_num_threads(1)


def child(model: Path, rows: Path, out: Path) -> int:
    """Process id of a child that builds the preferences."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        outputs = {name: out / name for name in ("pairs", "rollouts")}
        for path in outputs.values():  # as the runner does before it runs a step again
            shutil.rmtree(path, ignore_errors=True)
        with reported("build_preferences", replace(Settings.at(out), runner_pid=os.getppid())):
            run(SMALL, rows=rows, model=model, **outputs, context=StepContext(state_dir=out / "state"))
        status = 0
    finally:
        os._exit(status)


def main(model: Path, rows: Path, out: Path, kills: int) -> None:
    """Kill ``kills`` children, every other one by SIGTERM, and let one live."""
    sampling.CHUNK = 4
    moments, chunks, seconds = random.Random(0), [], []
    for number in range(kills):
        pid = child(model, rows, out)
        time.sleep(moments.uniform(0.1, 1.2))
        asked = time.monotonic()
        os.kill(pid, signal.SIGTERM if number % 2 else signal.SIGKILL)
        os.waitpid(pid, 0)
        seconds.append(time.monotonic() - asked)
        chunks.append(len(list((out / "state" / "answers").glob("[0-9]*.json"))))
    _, status = os.waitpid(child(model, rows, out), 0)
    assert status == 0
    print(json.dumps({"kills": kills, "chunks": chunks, "seconds": max(seconds)}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), int(sys.argv[4]))
