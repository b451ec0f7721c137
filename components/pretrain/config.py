"""Configuration of ``pretrain``. Imports no torch."""

from pathlib import Path

from pydantic import Field, model_validator

from model.config import Section
from model.flash.config import ModelConfig
from model.training.config import TrainingConfig


class PretrainConfig(Section):
    """The network to make or the model to start from, an optional projector warm-up, and the training itself."""

    model: ModelConfig | None = None
    """The network to make."""
    init_from: Path | None = None
    """Or the local model directory to start from: its own configuration says what it is."""
    warmup: TrainingConfig | None = None
    """Projector warm-up before everything trains."""
    training: TrainingConfig | None = None
    """None takes ``init_from`` as it is, for a line that starts from a released model."""
    heldout_rows: int = Field(64, ge=1)
    """Rows per family that are scored at the end."""

    @model_validator(mode="after")
    def _one_start(self) -> "PretrainConfig":
        if (self.model is None) == (self.init_from is None):
            raise ValueError("give exactly one of model and init_from")
        if self.training is None and self.model is not None:
            raise ValueError("a new network needs training")
        if self.training is None and self.warmup is not None:
            raise ValueError("warmup needs training after it")
        adapted = any(t is not None and t.lora is not None for t in (self.warmup, self.training))
        if adapted and (self.init_from is None or self.warmup is not None):
            raise ValueError("training.lora: an adapter belongs to init_from as it is, without a warmup")
        return self
