"""The KFP face of ``mpo``."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output


@dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
def mpo(
    config: str,
    rows: Input[Dataset],
    heldout: Input[Dataset],
    init: Input[Model],
    model: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Train a model on pairs of a better and a worse answer.

    Args:
        config: the profile's section ``mpo``, as JSON.
        rows: preference pairs.
        heldout: rows of which a sample is scored at the end.
        init: the fine-tuned model.
        model: Hugging Face model directory.
        metrics: loss, its terms, and held-out scores.
    """
    from components.runner import run_step

    run_step(
        "mpo",
        config,
        inputs={"rows": rows.path, "heldout": heldout.path, "init": init.path},
        outputs={"model": model.path},
        metadata={"model": model.metadata},
        metrics=metrics.metadata,
    )
