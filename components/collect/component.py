"""The KFP face of ``collect``."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Output


@dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
def collect(config: str, corpus: Output[Dataset], heldout: Output[Dataset], tokenizer: Output[Artifact]) -> None:
    """Build or import rows, held-out rows and the tokenizer.

    Args:
        config: the profile's section ``collect``, as JSON.
        corpus: training rows.
        heldout: rows that no stage trains on.
        tokenizer: Hugging Face tokenizer directory.
    """
    from components.runner import run_step

    made = {"corpus": corpus, "heldout": heldout, "tokenizer": tokenizer}
    run_step(
        "collect",
        config,
        inputs={},
        outputs={name: artifact.path for name, artifact in made.items()},
        metadata={name: artifact.metadata for name, artifact in made.items()},
    )
