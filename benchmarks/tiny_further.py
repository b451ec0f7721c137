"""A well fine-tuned ``tiny``: the line's model after more of the same, for benchmarks whose stages presume one.

The minutes of ``make demo`` end fine-tuning long before it is done, and what a stage gains or costs on such a model is
mostly what more fine-tuning would have done. The paper's stages begin with a converged model.
"""

from pathlib import Path

from components.context import StepContext
from model.data.artifact import payload_sha256
from pipelines.profile import Profile

STEPS, QUICK_STEPS = 1600, 40
RATE = 4e-4
"""Peak, with the profile's schedule; the profile's own peak is 5e-4."""


def fine_tune_further(line: Path, profile: Profile, steps: int, threads: int) -> Path:
    """The fine-tuned model of ``line`` after so many more steps of the profile's fine-tuning.

    It is made once and kept beside the line, under the hash of the model that it began as.
    """
    from components.sft.step import run

    start = line / "sft" / "model"
    made = line.parent / "further" / f"{payload_sha256(start)[:12]}-{steps}-{threads}"
    if made.is_dir():
        return made / "model"
    work = made.with_name(made.name + ".partial")
    changes = {"steps": steps, "learning_rate": RATE, "checkpoint_every": 100, "threads": threads}
    section = profile.sft.model_copy(
        update={"training": profile.sft.training.model_copy(update=changes), "heldout_rows": 1}
    )
    rows, heldout = line / "curate" / "questions", line / "collect" / "heldout"
    context = StepContext(state_dir=work / "state")
    run(section, rows=rows, heldout=heldout, init=start, model=work / "model", context=context)
    work.replace(made)
    return made / "model"
