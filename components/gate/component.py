"""The KFP face of ``gate``."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output


@dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
def gate(
    config: str,
    model: Input[Model],
    heldout: Input[Dataset],
    evaluation: Input[Artifact],
    verdict: Output[Artifact],
) -> NamedTuple("GateOutputs", [("passed", bool)]):
    """Judge the model against the champion, on the same rows.

    Args:
        config: the profile's section ``gate``, as JSON.
        model: the challenger.
        heldout: the rows.
        evaluation: the challenger's answers and scores.
        verdict: numbers, intervals, and pass or fail of each criterion.

    Returns:
        passed: the verdict as a boolean, for pipelines that branch on it.
    """
    from components.runner import run_step

    result = run_step(
        "gate",
        config,
        inputs={"model": model.path, "heldout": heldout.path, "evaluation": evaluation.path},
        outputs={"verdict": verdict.path},
        metadata={"verdict": verdict.metadata},
    )
    return (result.values["passed"],)
