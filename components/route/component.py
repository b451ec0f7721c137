"""The KFP face of ``route``."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output


@dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
def route(
    config: str,
    rows: Input[Dataset],
    heldout: Input[Dataset],
    init: Input[Model],
    reference: Input[Model],
    model: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Train the router that picks a tile's resolution.

    Args:
        config: the profile's section ``route``, as JSON.
        rows: questions.
        heldout: rows of which a sample is scored at the end, in full and routed.
        init: the model of ``vico``.
        reference: the model that ``vico`` started from.
        model: Hugging Face model directory that routes.
        metrics: loss, agreement of the two measures, held-out scores, and the share of tokens kept of inked tiles.
    """
    from components.runner import run_step

    run_step(
        "route",
        config,
        inputs={"rows": rows.path, "heldout": heldout.path, "init": init.path, "reference": reference.path},
        outputs={"model": model.path},
        metadata={"model": model.metadata},
        metrics=metrics.metadata,
    )
