"""Configuration of ``sft``. Imports no torch."""

from typing import Literal

from pydantic import Field, model_validator

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

    @model_validator(mode="after")
    def _adapter_has_its_base(self) -> "SftConfig":
        if self.init == "random" and self.training.lora is not None:
            raise ValueError("training.lora: adapters of random weights have no base; leave init out")
        return self
