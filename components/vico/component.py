"""The KFP face of ``vico``."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output


@dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
def vico(
    config: str,
    rows: Input[Dataset],
    transcriptions: Input[Dataset],
    heldout: Input[Dataset],
    init: Input[Model],
    model: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Teach a model to answer from compressed tiles.

    Args:
        config: the profile's section ``vico``, as JSON.
        rows: questions.
        transcriptions: rows of pre-training.
        heldout: rows of which a sample is scored at the end, in full and compressed.
        init: the model to start from, which is the reference too.
        model: Hugging Face model directory with a second projector; routing is off.
        metrics: loss, divergences, and held-out scores.
    """
    from components.runner import run_step

    run_step(
        "vico",
        config,
        inputs={
            "rows": rows.path,
            "transcriptions": transcriptions.path,
            "heldout": heldout.path,
            "init": init.path,
        },
        outputs={"model": model.path},
        metadata={"model": model.metadata},
        metrics=metrics.metadata,
    )
