"""The KFP face of ``build_preferences``."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output


@dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
def build_preferences(
    config: str,
    rows: Input[Dataset],
    model: Input[Model],
    pairs: Output[Dataset],
    rollouts: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Sample answers, judge them, and pair right with wrong ones.

    Args:
        config: the profile's section ``build_preferences``, as JSON.
        rows: questions.
        model: the fine-tuned model.
        pairs: rows with a chosen and a rejected answer.
        rollouts: every answer with its score, and a report.
        metrics: counts and the mean accuracy.
    """
    from components.runner import run_step

    run_step(
        "build_preferences",
        config,
        inputs={"rows": rows.path, "model": model.path},
        outputs={"pairs": pairs.path, "rollouts": rollouts.path},
        metadata={"pairs": pairs.metadata, "rollouts": rollouts.metadata},
        metrics=metrics.metadata,
    )
