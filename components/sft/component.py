"""The KFP face of ``sft``."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output


@dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
def sft(
    config: str,
    rows: Input[Dataset],
    heldout: Input[Dataset],
    init: Input[Model],
    model: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Fine-tune a model on questions and answers.

    Args:
        config: the profile's section ``sft``, as JSON.
        rows: questions.
        heldout: rows of which a sample is scored at the end.
        init: the pre-trained model.
        model: Hugging Face model directory.
        metrics: loss, tokens and held-out scores.
    """
    from components.runner import run_step

    run_step(
        "sft",
        config,
        inputs={"rows": rows.path, "heldout": heldout.path, "init": init.path},
        outputs={"model": model.path},
        metadata={"model": model.metadata},
        metrics=metrics.metadata,
    )
