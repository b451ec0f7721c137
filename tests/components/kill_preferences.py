"""Build preferences in children that are killed or told to stop, and then in one that ends: ``MODEL ROWS OUT KILLS``.

One process imports everything and forks the children, so that a kill costs a moment and not an import. A child is
killed a moment after it has stored a chunk of answers. Prints ``{"kills", "chunks", "all", "seconds"}``: how many
chunks lay there after each kill and at the end, and how long the slowest child took to end.
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
    sampling.CHUNK = 2
    moments, chunks, seconds = random.Random(0), [], []
    for number in range(kills):
        before, pid = stored(out), child(model, rows, out)
        while stored(out) == before:
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), "a child ended before it was killed"
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05))
        asked, how = time.monotonic(), signal.SIGTERM if number % 2 else signal.SIGKILL
        os.kill(pid, how)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert ended == (143 if how == signal.SIGTERM else -how)
        seconds.append(time.monotonic() - asked)
        chunks.append(stored(out))
    _, status = os.waitpid(child(model, rows, out), 0)
    assert status == 0
    print(json.dumps({"kills": kills, "chunks": chunks, "all": stored(out), "seconds": max(seconds)}))


def stored(out: Path) -> int:
    """Chunks of answers that are complete."""
    return len(list((out / "state" / "answers").glob("[0-9]*.json")))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), int(sys.argv[4]))
