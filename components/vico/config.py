"""Configuration of ``vico``. Imports no torch."""

from pydantic import Field

from model.config import Section
from model.objectives.config import VicoObjective
from model.training.config import TrainingConfig


class VicoConfig(Section):
    """Visual consistency learning, first half: the model learns to answer from compressed tiles."""

    training: TrainingConfig
    """All parameters train, against a frozen copy of the start."""
    objective: VicoObjective = VicoObjective()
    """The compressions that are drawn from."""
    heldout_rows: int = Field(64, ge=1)
    """Rows per family that are scored at the end."""
