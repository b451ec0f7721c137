"""The KFP face of ``evaluate``."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output


@dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
def evaluate(
    config: str,
    model: Input[Model],
    heldout: Input[Dataset],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Answer every held-out row and score the answers.

    Args:
        config: the profile's section ``evaluate``, as JSON.
        model: Hugging Face model directory.
        heldout: the rows.
        evaluation: raw predictions, and their scores.
        metrics: held-out scores.
    """
    from components.runner import run_step

    run_step(
        "evaluate",
        config,
        inputs={"model": model.path, "heldout": heldout.path},
        outputs={"evaluation": evaluation.path},
        metadata={"evaluation": evaluation.metadata},
        metrics=metrics.metadata,
    )
