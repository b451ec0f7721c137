"""Configuration of ``sft``. Imports no torch."""

from typing import Literal

from pydantic import Field

from model.config import Section
from model.training.config import TrainingConfig


class SftConfig(Section):
    """Fine-tuning of the pre-trained model."""

    training: TrainingConfig
    """Next-token loss on the answers."""
    init: Literal["pretrained", "random"] = "pretrained"
    """``random`` draws new weights of the same shape: the control for what pre-training gives."""
    heldout_rows: int = Field(64, ge=1)
    """Rows per family that are scored at the end."""
