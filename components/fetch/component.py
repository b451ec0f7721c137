"""The KFP face of ``fetch``."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output


@dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
def fetch(config: str, dataset: Output[Dataset], pointer: Input[Artifact] | None = None) -> None:
    """Bring a version of a dataset from the DVC remote.

    Args:
        config: the profile's section ``fetch``, as JSON.
        dataset: the rows, every byte verified.
        pointer: what ``version`` gave; without it the configuration names a revision and a path.
    """
    from components.runner import run_step

    run_step(
        "fetch",
        config,
        inputs={"pointer": pointer.path} if pointer else {},
        outputs={"dataset": dataset.path},
        metadata={"dataset": dataset.metadata},
    )
