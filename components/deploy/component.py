"""The KFP face of ``deploy``."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output


@dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
def deploy(
    config: str,
    model: Input[Model],
    verdict: Input[Artifact],
    registration: Input[Artifact],
    deployment: Output[Artifact],
) -> None:
    """Render what serves the model, or the champion after a failed verdict; on a cluster, apply it.

    Args:
        config: the profile's section ``deploy``, as JSON.
        model: Hugging Face model directory.
        verdict: what the gate said.
        registration: the registered version.
        deployment: specification of the servers.
    """
    from components.runner import run_step

    run_step(
        "deploy",
        config,
        inputs={"model": model.path, "verdict": verdict.path, "registration": registration.path},
        outputs={"deployment": deployment.path},
        metadata={"deployment": deployment.metadata},
    )
