"""The KFP face of ``pretrain``."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output


@dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
def pretrain(
    config: str,
    rows: Input[Dataset],
    heldout: Input[Dataset],
    tokenizer: Input[Artifact],
    model: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Make a network, or take a released one, and pre-train it.

    Args:
        config: the profile's section ``pretrain``, as JSON.
        rows: transcriptions.
        heldout: rows of which a sample is scored at the end.
        tokenizer: Hugging Face tokenizer directory.
        model: Hugging Face model directory.
        metrics: loss, tokens and held-out scores.
    """
    from components.runner import run_step

    run_step(
        "pretrain",
        config,
        inputs={"rows": rows.path, "heldout": heldout.path, "tokenizer": tokenizer.path},
        outputs={"model": model.path},
        metadata={"model": model.metadata},
        metrics=metrics.metadata,
    )
