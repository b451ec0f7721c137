"""MPO with its generation term over a constant length, beside the published form, over each answer's own length.

Both train the fine-tuned model of ``make demo`` on the demo's own pairs, with the settings of the profile ``tiny`` and
the same seeds; all models answer the same held-out rows greedily. Two of the families have right answers that come at
once and right ones that are written out: ``thoughts`` is the share of their answers that think, among the chosen
answers of the pairs, and before and after training. Intervals are of paired differences over rows, each row's score
averaged over the seeds first.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cascade_stages import (
    LINE,
    QUICK_ROWS,
    ROWS,
    START,
    Rollouts,
    Start,
    ends,
    greedy_answers,
    heldout_rows,
    interval,
    scores_of,
    show,
    stages,
    tables,
)
from benchmarks.harness import Result, need_line, processes_for, result, run, workers
from model.data.errors import InputError
from model.data.schema import Row
from model.data.shards import open_dataset
from pipelines.profile import Profile, load_profile
from scoring.answer_format import THINK_START

CONSTANT, OWN = "a constant", "each answer's own"
"""What the chosen answer's likelihood is divided by."""
SEEDS, QUICK_SEEDS = (0, 1, 2), (0,)
QUICK_STEPS = 4
TASKS = ("sum", "difference")
"""Families with demonstrations of both kinds."""
AIM = 1.0


@dataclass(frozen=True)
class Job:
    """One training run, and what answers the held-out rows after it."""

    line: Path
    divided_by: str
    seed: int
    quick: bool


@dataclass(frozen=True)
class Answered:
    """Scores [N] of held-out rows, the share of thoughts in each of ``TASKS``, and how the curves begin and end."""

    scores: np.ndarray
    thoughts: dict[str, float]
    curves: dict[str, list[float]]


def profile_for(divided_by: str) -> Profile:
    """``tiny``, with the generation term of the arm.

    Raises:
        InputError: the profile itself has the published form.
    """
    profile = load_profile("tiny")
    if profile.mpo.objective.generation_length is None:
        raise InputError("the profile tiny has no mpo.objective.generation_length to compare with")
    if divided_by == CONSTANT:
        return profile
    objective = profile.mpo.objective.model_copy(update={"generation_length": None})
    return profile.model_copy(update={"mpo": profile.mpo.model_copy(update={"objective": objective})})


def rows_of(line: Path, quick: bool) -> list[Row]:
    """The held-out rows that all models answer."""
    without = load_profile("tiny").curate.pretrain_tasks
    return heldout_rows(line / "collect" / "heldout", without, QUICK_ROWS if quick else ROWS)


def thinking(rows: Sequence[Row], answers: Sequence[str]) -> dict[str, float]:
    """The share of answers with thoughts in each of ``TASKS`` that has rows."""
    told = [(row["task"], THINK_START in answer) for row, answer in zip(rows, answers, strict=True)]
    found = {task: [thinks for of, thinks in told if of == task] for task in TASKS}
    return {task: round(float(np.mean(thought)), 4) for task, thought in found.items() if thought}


def answer(model: Path, rows: Sequence[Row], curves: dict[str, list[float]]) -> Answered:
    """Have the model answer the rows greedily."""
    answers = greedy_answers(model, rows)
    return Answered(scores_of(rows, answers), thinking(rows, answers), curves)


def train(job: Job) -> Answered:
    """One run of MPO."""
    profile, line = profile_for(job.divided_by), job.line
    steps = QUICK_STEPS if job.quick else profile.mpo.training.steps
    with tempfile.TemporaryDirectory() as work:
        start = Start(line / "sft" / "model", line, profile, Path(work), 0.0)
        made = Rollouts(line / "build_preferences" / "pairs", line, 0, steps, 0.0)
        trained = stages(start, made)["mpo"](steps, job.seed, start.model)
        found = answer(trained.model, rows_of(line, job.quick), ends(trained.history))
    print(f"  over {job.divided_by}, seed {job.seed}: {found.scores.mean():.3f}, thoughts {found.thoughts}", flush=True)
    return found


def measure(quick: bool, line: Path = LINE, processes: int = 1) -> Result:
    """Train and score both forms with three seeds, in so many processes; ``quick``: a few steps with one seed."""
    need_line(line, "sft/model", "build_preferences/pairs", "collect/heldout")
    profile, rows, seeds = profile_for(CONSTANT), rows_of(line, quick), QUICK_SEEDS if quick else SEEDS
    jobs = [Job(line, divided_by, seed, quick) for divided_by in (CONSTANT, OWN) for seed in seeds]
    with workers(processes) as pool:
        asked = pool.submit(answer, line / "sft" / "model", rows, {})
        runs, before = list(pool.map(train, jobs)), asked.result()
    arms = {START: [before] * len(seeds), CONSTANT: runs[: len(seeds)], OWN: runs[len(seeds) :]}
    scores = {arm: np.stack([one.scores for one in found]) for arm, found in arms.items()}
    table = tables(scores, rows)
    show(table)
    given = list(open_dataset(line / "build_preferences" / "pairs").rows())
    chosen = thinking(given, [row["chosen"] for row in given])
    details: dict[str, Any] = {"rows": len(rows), "seeds": list(seeds), "rate": profile.mpo.training.learning_rate}
    details |= {"generation_length": profile.mpo.objective.generation_length, "arms": table}
    details |= {"over_own": interval(scores[CONSTANT], scores[OWN])}
    details |= {"thoughts": {"chosen": chosen} | {arm: [one.thoughts for one in found] for arm, found in arms.items()}}
    details |= {"curves": {arm: [one.curves for one in arms[arm]] for arm in (CONSTANT, OWN)}}
    ours, peer = table[CONSTANT]["by_seed"], table[OWN]["by_seed"]
    ratio = table[CONSTANT]["overall"] / max(table[OWN]["overall"], 1e-9)
    return result("mpo_length", "mean held-out score", ours, peer, ratio=ratio, aim=AIM, details=details)


def main() -> int:
    """Run the benchmark, a run of MPO on each processor."""
    return run(__doc__, lambda options: measure(options.quick, processes=processes_for(options)))


if __name__ == "__main__":
    sys.exit(main())
