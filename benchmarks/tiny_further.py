"""A well fine-tuned ``tiny``: the line's model after more of the same, for benchmarks whose stages presume one.

The minutes of ``make demo`` end fine-tuning long before it is done, and what a stage gains or costs on such a model is
mostly what more fine-tuning would have done. The paper's stages begin with a converged model.
"""

import shutil
from pathlib import Path

from components.context import StepContext
from components.sft.config import SftConfig
from model.data.artifact import payload_sha256
from pipelines.profile import Profile

STEPS, QUICK_STEPS = 1600, 10
RATE = 4e-4
"""Peak, with the profile's schedule; the profile's own peak is 5e-4."""


def fine_tune_further(line: Path, profile: Profile, steps: int) -> Path:
    """The fine-tuned model of ``line`` after so many more steps of the profile's fine-tuning.

    It is made once and kept beside the line, under the hash of the model that it began as.
    """
    init = line / "sft" / "model"
    training = profile.sft.training.model_copy(update={"steps": steps, "learning_rate": RATE, "checkpoint_every": 100})
    made = line.parent / "further" / f"{payload_sha256(init)[:12]}-{steps}-{RATE:g}"
    if not made.is_dir():
        _fine_tune(line, profile.sft.model_copy(update={"training": training, "heldout_rows": 1}), init, made)
    return made / "model"


def _fine_tune(line: Path, section: SftConfig, init: Path, made: Path) -> None:
    """Leave ``model`` in ``made``, which appears when it is complete; one that was stopped goes on."""
    from components.sft.step import run

    work = made.with_name(made.name + ".partial")
    shutil.rmtree(work / "model", ignore_errors=True)  # of a run that was killed while it wrote
    rows, heldout = line / "curate" / "questions", line / "collect" / "heldout"
    context = StepContext(state_dir=work / "state")
    run(section, rows=rows, heldout=heldout, init=init, model=work / "model", context=context)
    work.replace(made)
