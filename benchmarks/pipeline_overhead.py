"""How long a pipeline task takes to its first batch, beside the same step function in one fresh process without KFP.

Ours: seconds from the moment KFP's local runner starts the task ``sft`` (its log says when) to the first batch of
``sft`` (progress.json says when), on the profile ``micro``; the steps before it come from the store. Peer: a fresh
interpreter that imports ``components.sft.step`` and calls ``run`` on the same inputs, from its start to its first
batch. ``ratio`` is one process / pipeline: what of the pipeline's time the step needs by itself.

Both sides stop at their first batch. Nothing is read from the page cache that the other side has not read too: one
unmeasured round comes first, and the sides take turns.
"""

import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import harness
from components.context import StepContext
from components.runner import parse_config
from components.settings import Settings
from model.data.errors import InputError
from pipelines.profile import load_profile, section_json
from pipelines.runners import run_local

AIM = 0.5
_ROUNDS, _QUICK_ROUNDS = 7, 2
_PATIENCE_SECONDS = 300.0
_TASK_STARTS = re.compile(r"^(\d\d:\d\d:\d\d\.\d{3}) - INFO - Executing task \S*'sft'", re.MULTILINE)
_ONE_PROCESS = "import sys; from benchmarks.pipeline_overhead import one_process; one_process(sys.argv[1])"


def main() -> None:
    """Measure, print, store."""
    options = harness.arguments(__doc__.splitlines()[0])
    with tempfile.TemporaryDirectory(prefix="fovea-overhead-") as directory:
        settings = Settings.at(Path(directory))
        inputs = prepare(settings)
        pipeline, process = [], []
        for number in range((_QUICK_ROUNDS if options.quick else _ROUNDS) + 1):
            process.append(time_one_process(inputs, settings.out))
            pipeline.append(time_pipeline(number, settings))
            print(f"round {number}: pipeline {pipeline[-1]:.2f} s, one process {process[-1]:.2f} s", flush=True)
    ours, peer = pipeline[1:], process[1:]
    measured = harness.result(
        "pipeline_overhead", "s", ours, peer, ratio=harness.median(peer) / harness.median(ours), aim=AIM
    )
    harness.report(measured, options)


def prepare(settings: Settings) -> dict[str, str]:
    """Run the line ``micro`` once, so that everything before ``sft`` is in the store.

    Returns:
        Directory of each input of ``sft``.
    """
    print("preparing: the line micro, once", flush=True)
    run = run_local(load_profile("micro"), settings=settings)
    if run.failure is not None:
        raise InputError(f"{run.failure['step']}: {run.failure['error']}; log: {run.failure['log']}")
    made = {(s["step"], name): output["path"] for s in run.steps for name, output in s["outputs"].items()}
    return {
        "rows": made["curate", "questions"],
        "heldout": made["collect", "heldout"],
        "init": made["pretrain", "model"],
    }


def time_pipeline(number: int, settings: Settings) -> float:
    """Seconds from the start of the task to its first batch, in a pipeline run that is ended there.

    ``number`` seeds the stage: every round computes another key, so none comes from the store.
    """
    script = (
        "import sys; from pipelines.profile import load_profile; from pipelines.runners import run_local;"
        "run_local(load_profile('micro', {'sft': {'training': {'seed': int(sys.argv[1])}}}))"
    )
    before = set(_runs(settings))
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(1000 + number)],
        env={**os.environ, **settings.environment()},
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + _PATIENCE_SECONDS
        while child.poll() is None and time.monotonic() < until:
            for run_dir in set(_runs(settings)) - before:
                if (first := _first_batch(run_dir)) is not None:
                    return (first - _task_start(run_dir)) % 86400  # the log has no date
            time.sleep(0.02)
        raise InputError("the pipeline ended, or took five minutes, before the first batch of sft")
    finally:
        child.send_signal(signal.SIGINT)
        child.wait()


def _runs(settings: Settings) -> list[Path]:
    return list((settings.out / "runs").glob("*"))


def _first_batch(run_dir: Path) -> float | None:
    """When the training loop of ``sft`` took its first batch, in seconds since the epoch."""
    try:
        state = json.loads((run_dir / "progress.json").read_text())
    except FileNotFoundError:
        return None
    return state["started"] if (state["step"], state["label"]) == ("sft", "sft") else None


def _task_start(run_dir: Path) -> float:
    """When KFP started the task, in seconds since the epoch: its log has the local time of today."""
    clock = _TASK_STARTS.search((run_dir / "log.txt").read_text())
    if clock is None:
        raise InputError(f"{run_dir / 'log.txt'}: KFP does not say when it started sft")
    today = datetime.datetime.now().astimezone().date()
    return datetime.datetime.fromisoformat(f"{today} {clock.group(1)}").astimezone().timestamp()


def time_one_process(inputs: dict[str, str], directory: Path) -> float:
    """Seconds from starting an interpreter to the first batch of the step function called in it."""
    with tempfile.TemporaryDirectory(dir=directory) as state:
        job = json.dumps({"inputs": inputs, "state": state, "section": section_json(load_profile("micro"), "sft")})
        started = time.time()
        done = subprocess.run([sys.executable, "-c", _ONE_PROCESS, job], stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1]) - started


def one_process(job_json: str) -> None:
    """The peer's process: call the step function, print when it takes its first batch, and end there."""
    from components.sft.step import run

    job = json.loads(job_json)

    def progress(label: str, done: int, total: int) -> None:
        if label == "sft":
            print(time.time(), flush=True)
            os._exit(0)

    context = StepContext(Path(job["state"]) / "state", progress)
    paths = {name: Path(path) for name, path in job["inputs"].items()}
    run(parse_config("sft", job["section"]), **paths, model=Path(job["state"]) / "model", context=context)


if __name__ == "__main__":
    main()
