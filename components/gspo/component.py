"""The KFP face of ``gspo``."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output


@dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
def gspo(
    config: str,
    rows: Input[Dataset],
    heldout: Input[Dataset],
    init: Input[Model],
    model: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Train a model on its own answers, by their rewards.

    Args:
        config: the profile's section ``gspo``, as JSON.
        rows: queries.
        heldout: rows of which a sample is scored at the end.
        init: the model to start from.
        model: Hugging Face model directory.
        metrics: loss, counts of answers and held-out scores.
    """
    from components.runner import run_step

    run_step(
        "gspo",
        config,
        inputs={"rows": rows.path, "heldout": heldout.path, "init": init.path},
        outputs={"model": model.path},
        metadata={"model": model.metadata},
        metrics=metrics.metadata,
    )
