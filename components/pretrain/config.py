"""Configuration of ``pretrain``. Imports no torch."""

from pathlib import Path

from pydantic import Field

from model.config import Section
from model.flash.config import ModelConfig
from model.training.config import TrainingConfig


class PretrainConfig(Section):
    """The network to make, an optional projector warm-up, and the training itself."""

    model: ModelConfig
    init_from: Path | None = None
    """Continue from this local model directory instead of making a network."""
    warmup: TrainingConfig | None = None
    """Projector warm-up before everything trains."""
    training: TrainingConfig
    heldout_rows: int = Field(64, ge=1)
    """Rows per family that are scored at the end."""
