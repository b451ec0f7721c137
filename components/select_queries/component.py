"""The KFP face of ``select_queries``."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Output


@dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
def select_queries(
    config: str,
    rows: Input[Dataset],
    rollouts: Input[Artifact],
    queries: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Keep the queries that are neither too easy nor too hard.

    Args:
        config: the profile's section ``select_queries``, as JSON.
        rows: questions.
        rollouts: answers to them, with their scores.
        queries: the rows that are kept.
        metrics: counts.
    """
    from components.runner import run_step

    run_step(
        "select_queries",
        config,
        inputs={"rows": rows.path, "rollouts": rollouts.path},
        outputs={"queries": queries.path},
        metadata={"queries": queries.metadata},
        metrics=metrics.metadata,
    )
