"""The KFP face of ``version``."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output


@dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
def version(config: str, dataset: Input[Dataset], pointer: Output[Artifact]) -> None:
    """Push a dataset to the DVC remote.

    Args:
        config: the profile's section ``version``, as JSON.
        dataset: the rows to version.
        pointer: what stands for the bytes from now on, and the dataset's card.
    """
    from components.runner import run_step

    run_step(
        "version",
        config,
        inputs={"dataset": dataset.path},
        outputs={"pointer": pointer.path},
        metadata={"pointer": pointer.metadata},
    )
