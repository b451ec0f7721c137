"""The KFP face of ``register``."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output


@dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
def register(
    config: str,
    model: Input[Model],
    evaluation: Input[Artifact],
    verdict: Input[Artifact],
    registration: Output[Artifact],
) -> None:
    """Make a version in the model registry and move its aliases.

    Args:
        config: the profile's section ``register``, as JSON.
        model: Hugging Face model directory.
        evaluation: its answers and scores.
        verdict: what the gate said.
        registration: name, version, aliases and address.
    """
    from components.runner import run_step

    run_step(
        "register",
        config,
        inputs={"model": model.path, "evaluation": evaluation.path, "verdict": verdict.path},
        outputs={"registration": registration.path},
        metadata={"registration": registration.metadata},
    )
