"""Configuration of ``route``. Imports no torch."""

from typing import Annotated

from pydantic import Field, model_validator

from model.config import Section
from model.objectives.config import RouterObjective
from model.training.config import TrainingConfig


class CalibrationConfig(Section):
    """The threshold is the lowest that keeps the score, on rows that the router does not learn from."""

    rows: int = Field(256, ge=1)
    """Rows of the dataset that are set apart."""
    retain: float = Field(0.99, gt=0, le=1)
    """Share of the score at full resolution that must be left; where that score is 0, nothing is compressed."""


class RouteConfig(Section):
    """Visual consistency learning, second half: the router alone trains, everything else is frozen."""

    training: TrainingConfig
    """Of the router. A labelled tile counts once, so ``loss_averaging`` has no part in it."""
    objective: RouterObjective
    """How a tile gets its label."""
    repeat: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Question families that are read so many times as often as others; a fraction thins them. A router learns
    most from images whose tiles differ. Empty as published."""
    compress_above: float | None = Field(0.5, ge=0, le=1)
    """A tile is compressed when the router's P(compress) is at least this: absolute and per tile, so that no batch
    neighbour changes an answer; 1 compresses nothing. None with ``calibration``."""
    calibration: CalibrationConfig | None = None
    """Chooses the threshold by what it costs."""
    compared_rows: int = Field(32, ge=0)
    """Rows on which both ways to measure a tile are compared at the end; the router has learned from none of them."""
    heldout_rows: int = Field(64, ge=1)
    """Rows per family that are scored at the end."""

    @model_validator(mode="after")
    def _one_threshold(self) -> "RouteConfig":
        if (self.compress_above is None) == (self.calibration is None):
            raise ValueError("compress_above: give a threshold, or null and a calibration")
        return self

    @model_validator(mode="after")
    def _router_alone(self) -> "RouteConfig":
        if self.training.lora is not None:
            raise ValueError("training.lora: the router trains whole; leave it out")
        if self.training.train != "all":
            raise ValueError("training.train: the router alone trains in this step; leave it out")
        return self
