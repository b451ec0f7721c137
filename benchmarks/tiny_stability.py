"""Whether Cascade RL as ``make demo`` runs it is stable: held-out accuracy before, after MPO and after GSPO.

Each of three seeds runs ``build_preferences``, ``mpo``, ``select_queries`` and ``gspo`` with the settings of the
profile ``tiny`` on the fine-tuned model that the demo left in ``out/line``; all models answer the same held-out rows
greedily. A seed's difference to the start has a paired interval over rows; ``over_start`` averages the seeds of a row
first. Stable is a stage whose interval of the mean does not lie below 0. Beside it stand how the curves begin and end:
rewards, lengths, entropy, clipped shares. ``ratio`` is the mean score after GSPO over that of the start.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cascade_stages import (
    LINE,
    QUICK_QUERIES,
    QUICK_ROWS,
    ROWS,
    START,
    Start,
    ends,
    heldout_rows,
    interval,
    make_rollouts,
    score_rows,
    show,
    stages,
    tables,
)
from benchmarks.harness import Result, need_line, processes_for, result, run, workers
from model.data.schema import Row
from pipelines.profile import Profile, load_profile

SEEDS, QUICK_SEEDS = (0, 1, 2), (0,)
QUICK_STEPS = 4
AFTER_MPO, AFTER_GSPO = "after MPO", "after GSPO"
AIM = 1.0


@dataclass(frozen=True)
class Job:
    """One seed's run: the line, the seed, and whether it is a few steps only."""

    line: Path
    seed: int
    quick: bool

    @property
    def model(self) -> Path:
        """The model that all begin with."""
        return self.line / "sft" / "model"

    def rows(self, profile: Profile) -> list[Row]:
        """The held-out rows that all answer."""
        most = QUICK_ROWS if self.quick else ROWS
        return heldout_rows(self.line / "collect" / "heldout", profile.curate.pretrain_tasks, most)

    def steps(self, profile: Profile) -> dict[str, int]:
        """Of each stage."""
        return {name: QUICK_STEPS if self.quick else getattr(profile, name).training.steps for name in ("mpo", "gspo")}


def run_seed(job: Job) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Scores [rows] after each stage; what the stages cost, and how their curves begin and end."""
    profile = load_profile("tiny")
    rows, steps = job.rows(profile), job.steps(profile)
    asked = QUICK_QUERIES if job.quick else profile.build_preferences.max_queries
    with tempfile.TemporaryDirectory() as work:
        start = Start(job.model, job.line, profile, Path(work), 0.0)
        made = make_rollouts(start, job.seed, asked)
        kinds = stages(start, made)
        taught = kinds["mpo"](steps["mpo"], job.seed, job.model)
        scores = {AFTER_MPO: score_rows(taught.model, rows)}
        reinforced = kinds["gspo"](steps["gspo"], job.seed, taught.model)
        scores[AFTER_GSPO] = score_rows(reinforced.model, rows)
    seconds = {"preferences": made.seconds, "mpo": taught.meter.spent(), "gspo": reinforced.meter.spent()}
    print(f"  seed {job.seed}: " + ", ".join(f"{arm} {found.mean():.3f}" for arm, found in scores.items()), flush=True)
    facts = {
        "seed": job.seed,
        "processor_seconds": {name: round(spent, 1) for name, spent in seconds.items()},
        "curves": {"mpo": ends(taught.history), "gspo": ends(reinforced.history)},
    }
    return scores, facts


def measure(quick: bool, line: Path = LINE, processes: int = 1) -> Result:
    """Run the stages with three seeds, in so many processes; ``quick`` runs a few steps of each with one seed."""
    jobs = [Job(line, seed, quick) for seed in (QUICK_SEEDS if quick else SEEDS)]
    model = jobs[0].model
    need_line(line, "sft/model", "curate/questions", "collect/heldout")
    profile = load_profile("tiny")
    rows = jobs[0].rows(profile)
    with workers(processes) as pool:
        whole = pool.submit(score_rows, model, rows)
        found, before = list(pool.map(run_seed, jobs)), whole.result()
    scores = {START: [before] * len(jobs)}
    scores |= {arm: [one[arm] for one, _ in found] for arm in (AFTER_MPO, AFTER_GSPO)}
    runs = [facts | {arm: interval(one[arm][None], before[None]) for arm in one} for one, facts in found]
    table = tables({arm: np.stack(found) for arm, found in scores.items()}, rows)
    show(table)
    details = {"rows": len(rows), "seeds": [job.seed for job in jobs], "steps": jobs[0].steps(profile)}
    details |= {"rates": {name: getattr(profile, name).training.learning_rate for name in ("mpo", "gspo")}}
    details |= {"stages": table, "runs": runs}
    ours, peer = table[AFTER_GSPO]["by_seed"], table[START]["by_seed"]
    ratio = table[AFTER_GSPO]["overall"] / max(table[START]["overall"], 1e-9)
    return result("tiny_stability", "mean held-out score", ours, peer, ratio=ratio, aim=AIM, details=details)


def main() -> int:
    """Run the benchmark, a seed on each processor: processor seconds are counted, so they may run side by side."""
    return run(__doc__, lambda options: measure(options.quick, processes=processes_for(options)))


if __name__ == "__main__":
    sys.exit(main())
