"""Whether Cascade RL as ``make demo`` runs it is stable: held-out accuracy before, after MPO and after GSPO.

Each of three seeds runs ``build_preferences``, ``mpo``, ``select_queries`` and ``gspo`` with the settings of the
profile ``tiny`` on the fine-tuned model that the demo left in ``out/line``; all models answer the same held-out rows
greedily. A seed's difference to the start has a paired interval over rows; ``over_start`` averages the seeds of a row
first. Stable is a stage whose interval of the mean does not lie below 0. Beside it stand how the curves begin and end:
rewards, lengths, entropy, clipped shares. ``ratio`` is the mean score after GSPO over that of the start.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.cascade import (
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
from benchmarks.harness import Result, result, run
from model.data.errors import InputError
from pipelines.profile import load_profile

SEEDS, QUICK_SEEDS = (0, 1, 2), (0,)
QUICK_STEPS = 4
AFTER_MPO, AFTER_GSPO = "after MPO", "after GSPO"
AIM = 1.0


def measure(quick: bool, line: Path = LINE) -> Result:
    """Run the stages with three seeds; ``quick`` runs a few steps of each with one."""
    model = line / "sft" / "model"
    if not all(path.is_dir() for path in (model, line / "curate" / "questions", line / "collect" / "heldout")):
        raise InputError(f"{line}: no finished line here; run make demo first")
    profile = load_profile("tiny")
    steps = {name: QUICK_STEPS if quick else getattr(profile, name).training.steps for name in ("mpo", "gspo")}
    asked = QUICK_QUERIES if quick else profile.build_preferences.max_queries
    rows = heldout_rows(line / "collect" / "heldout", profile.curate.pretrain_tasks, QUICK_ROWS if quick else ROWS)
    seeds = QUICK_SEEDS if quick else SEEDS
    before = score_rows(model, rows)
    scores: dict[str, list[np.ndarray]] = {START: [before] * len(seeds), AFTER_MPO: [], AFTER_GSPO: []}
    runs = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as work:
            start = Start(model, line, profile, Path(work), 0.0)
            made = make_rollouts(start, seed, asked)
            kinds = stages(start, made)
            taught = kinds["mpo"](steps["mpo"], seed, model)
            scores[AFTER_MPO].append(score_rows(taught.model, rows))
            reinforced = kinds["gspo"](steps["gspo"], seed, taught.model)
            scores[AFTER_GSPO].append(score_rows(reinforced.model, rows))
        seconds = {"preferences": made.seconds, "mpo": taught.meter.spent(), "gspo": reinforced.meter.spent()}
        runs.append(
            {
                "seed": seed,
                "processor_seconds": {name: round(spent, 1) for name, spent in seconds.items()},
                "curves": {"mpo": ends(taught.history), "gspo": ends(reinforced.history)},
            }
            | {arm: interval(found[-1][None], before[None]) for arm, found in scores.items() if arm != START}
        )
        print(f"  seed {seed}: " + ", ".join(f"{arm} {found[-1].mean():.3f}" for arm, found in scores.items()))
    table = tables({arm: np.stack(found) for arm, found in scores.items()}, rows)
    show(table)
    details = {"rows": len(rows), "seeds": list(seeds), "steps": steps, "stages": table, "runs": runs}
    ours, peer = table[AFTER_GSPO]["by_seed"], table[START]["by_seed"]
    ratio = table[AFTER_GSPO]["overall"] / max(table[START]["overall"], 1e-9)
    return result("tiny_stability", "mean held-out score", ours, peer, ratio=ratio, aim=AIM, details=details)


def main() -> int:
    """Run the benchmark."""
    return run(__doc__, lambda options: measure(options.quick))


if __name__ == "__main__":
    sys.exit(main())
