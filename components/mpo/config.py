"""Configuration of ``mpo``. Imports no torch."""

from pydantic import Field

from model.config import Section
from model.objectives.config import MpoObjective
from model.training.config import TrainingConfig


class MpoConfig(Section):
    """Mixed preference optimisation: the offline stage of Cascade RL."""

    training: TrainingConfig
    """A row is a pair."""
    objective: MpoObjective = MpoObjective()
    """Weights of the three losses."""
    heldout_rows: int = Field(64, ge=1)
    """Rows per family that are scored at the end."""
