"""Configuration of ``mpo``. Imports no torch."""

from typing import Literal

from pydantic import Field, model_validator

from model.config import Section
from model.objectives.config import MpoObjective
from model.training.config import TrainingConfig


class MpoConfig(Section):
    """Mixed preference optimisation: the offline stage of Cascade RL."""

    training: TrainingConfig
    """A row is a pair: ``batch_size`` counts pairs, ``micro_batch_size`` those of one forward pass, which are a pack.
    ``loss_averaging`` has no part in it."""
    objective: MpoObjective = MpoObjective()
    """Weights of the three losses."""
    reference: Literal["cached", "copy"] = "cached"
    """Log-probabilities of the network that training starts from: ``cached`` asks it once before the first update and
    keeps its answers on disk; ``copy`` keeps a second network in every process."""
    heldout_rows: int = Field(64, ge=1)
    """Rows per family that are scored at the end."""

    @model_validator(mode="after")
    def _pairs_as_they_are(self) -> "MpoConfig":
        if self.training.packing is not None:
            raise ValueError("training.packing: pairs are packed as micro_batch_size says; leave it out")
        if self.training.jpeg_quality is not None:
            raise ValueError("training.jpeg_quality: the reference saw the image as it is; leave it out")
        return self
