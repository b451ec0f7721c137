"""Curation on Ray and in this process gives the same bytes, with 1, 2 and 4 workers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.data.shards import write_dataset
from tests.tiny import picture, question_row

pytest.importorskip("ray")

SCRIPT = """
import json, sys
from pathlib import Path
from components.context import StepContext
from components.curate.config import CurateConfig
from components.curate.recipe import (DEFAULT, Blur, Entropy, NearDuplicateTexts, RedactPii, Size, Statistics)
from components.curate.step import run
from model.data.artifact import file_sha256, payload_sha256
here, out = Path(sys.argv[1]), Path(sys.argv[2])
outputs = {name: out / name for name in ("transcriptions", "questions")}
first, rest = DEFAULT[:2], DEFAULT[2:]
recipe = (*first, Size(), Entropy(), Blur(), RedactPii(), *rest, NearDuplicateTexts(ngram=1), Statistics())
context = StepContext(state_dir=out / "state")
config = CurateConfig(recipe=recipe, pretrain_tasks=("count",))
run(config, corpus=here / "corpus", heldout=here / "heldout", **outputs, context=context)
import daft
print(json.dumps([daft.get_or_create_runner().name] + [
    [payload_sha256(path), file_sha256(path / "funnel.html")] for path in outputs.values()]))
"""


def rows(rng, count):
    """Small rows, some of them broken, repeated, or with personal data."""
    made = []
    for index in range(count):
        one = question_row(f"row-{index}", [picture(rng)], str(index % 7), task=("read", "count")[index % 2])
        if index % 10 == 3:
            one["media"][0] |= {"bytes": one["media"][0]["bytes"][:80], "sha256": None}
        elif index % 10 == 5:
            one["media"] = [dict(made[index - 5]["media"][0])]
        elif index % 10 == 7:
            one["messages"][0]["content"] += " Write to me@example.org."
        made.append(one)
    return made


def curated(directory, runner, workers):
    """(runner, hashes of both outputs and their pages) of a run in a process of its own."""
    out = directory / f"{runner}-{workers}"
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"FOVEA_CURATE_RUNNER": runner, "FOVEA_CURATE_WORKERS": str(workers), "PYTHONPATH": root}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", SCRIPT, str(directory), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_and_this_process_give_the_same_bytes(tmp_path, rng):
    made = rows(rng, 1000)
    write_dataset(tmp_path / "corpus", made, shards=3)
    write_dataset(tmp_path / "heldout", rows(rng, 3)[:2])
    runs = {
        (runner, workers): curated(tmp_path, runner, workers) for runner in ("native", "ray") for workers in (1, 2, 4)
    }
    assert all(found[0] == runner for (runner, _), found in runs.items())
    assert len({json.dumps(found[1:]) for found in runs.values()}) == 1
