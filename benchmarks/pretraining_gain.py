"""What pre-training gives: fine-tuning after it, beside the same fine-tuning of random weights.

Both sides fine-tune on the same rows, for the same steps, in the same order, and answer the same held-out rows; the
peer starts from new random weights of the same shape. Reads the line that ``make demo`` left in ``out/line``.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Result, need_line, result, run
from components.context import StepContext

LINE = Path("out/line")
AIM = 1.5
QUICK_STEPS = 120
FAMILIES = frozenset({"read", "count", "maximum", "locate"})


def measure(quick: bool) -> Result:
    """Fine-tune from both starts with three seeds (one when ``quick``) and compare the mean held-out scores."""
    init, rows, heldout = LINE / "pretrain" / "model", LINE / "curate" / "questions", LINE / "collect" / "heldout"
    need_line(LINE, "pretrain/model", "curate/questions", "collect/heldout")
    seeds = (42,) if quick else (42, 43, 44)
    ours = [heldout_mean("pretrained", seed, init, rows, heldout, quick) for seed in seeds]
    peer = [heldout_mean("random", seed, init, rows, heldout, quick) for seed in seeds]
    ratio = (sum(ours) / len(ours)) / max(sum(peer) / len(peer), 1e-9)
    return result("pretraining_gain", "mean held-out score", ours, peer, ratio=ratio, aim=AIM)


def heldout_mean(start: str, seed: int, init: Path, rows: Path, heldout: Path, quick: bool) -> float:
    """Mean score over the question families after fine-tuning from ``start``."""
    from components.sft.step import run as fine_tune
    from pipelines.profile import load_profile

    config = load_profile("tiny").sft
    changes = {"seed": seed} | ({"steps": QUICK_STEPS} if quick else {})
    config = config.model_copy(
        update={
            "training": config.training.model_copy(update=changes),
            "init": start,
            "heldout_rows": 64 if quick else 250,
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        context = StepContext(state_dir=Path(scratch) / "state")
        done = fine_tune(config, rows=rows, heldout=heldout, init=init, model=Path(scratch) / "model", context=context)
    scores = [table.score for family, table in done.heldout.items() if family in FAMILIES]
    mean = sum(scores) / len(scores)
    print(f"  {start}, seed {seed}: {mean:.3f}", flush=True)
    return mean


def main() -> int:
    """Run the benchmark."""
    return run(__doc__, lambda options: measure(options.quick))


if __name__ == "__main__":
    sys.exit(main())
