"""Configuration of ``vico``. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from model.config import Section
from model.objectives.config import VicoObjective
from model.training.config import TrainingConfig


class VicoConfig(Section):
    """Visual consistency learning, first half: the model learns to answer from compressed tiles."""

    training: TrainingConfig
    """All parameters but the router's train, against a frozen copy of the start. A sample counts once, whatever its
    answer's length, so ``loss_averaging`` has no part in it."""
    objective: VicoObjective = VicoObjective()
    """The compressions that are drawn from."""
    start: Literal["pooled", "downsampled", "random"] = "pooled"
    """The second projector's first weights, for a model that has none. ``pooled``: a compressed row starts as about the
    mean of the four rows that it stands for. ``downsampled``: as about the first projector's row for the picture half
    as large. ``random``: as torch draws them. Not published; docs/flash.md compares them."""
    transcription_share: float = Field(0.0, ge=0, le=0.99)
    """Share of the rows that are those of pre-training, whose long answers say much about what a tile shows. 0 as
    published."""
    repeat: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Question families that are read so many times as often as others, e.g. ``{locate: 2}``; a fraction thins them.
    What compression makes hard takes longer to learn than what it does not. Empty as published."""
    warmup: TrainingConfig | None = None
    """Before that, the second projector alone is fitted to the means of the rows that its own stand for; None leaves
    it out. Not published."""
    heldout_rows: int = Field(64, ge=1)
    """Rows per family that are scored at the end."""

    @model_validator(mode="after")
    def _whole_weights(self) -> "VicoConfig":
        for name, training in (("training", self.training), ("warmup", self.warmup)):
            if training is not None:
                _check_whole(name, training)
        return self


def _check_whole(name: str, training: TrainingConfig) -> None:
    """Refuse settings that say what trains: these stages know it themselves.

    Raises:
        ValueError: of LoRA, or of parts that train.
    """
    if training.lora is not None:
        raise ValueError(f"{name}.lora: the second projector and the router train whole; leave it out")
    if training.train != "all":
        raise ValueError(f"{name}.train: which parts train is what this step is; leave it out")
