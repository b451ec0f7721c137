"""The KFP face of ``curate``."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Output


@dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
def curate(
    config: str,
    corpus: Input[Dataset],
    heldout: Input[Dataset],
    transcriptions: Output[Dataset],
    questions: Output[Dataset],
) -> None:
    """Check, deduplicate and decontaminate rows, and split them between the stages.

    Args:
        config: the profile's section ``curate``, as JSON.
        corpus: rows as collected.
        heldout: rows that training rows must not repeat.
        transcriptions: rows of pre-training.
        questions: rows of fine-tuning.
    """
    from components.runner import run_step

    made = {"transcriptions": transcriptions, "questions": questions}
    run_step(
        "curate",
        config,
        inputs={"corpus": corpus.path, "heldout": heldout.path},
        outputs={name: artifact.path for name, artifact in made.items()},
        metadata={name: artifact.metadata for name, artifact in made.items()},
    )
