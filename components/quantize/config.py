"""Configuration of ``quantize``. Imports no torch."""

from typing import Literal

from pydantic import Field

from model.config import Section


class QuantizeConfig(Section):
    """Weights of the language model in fewer bits; vision tower, projector and output head stay as they are."""

    scheme: Literal["W4A16", "FP8_DYNAMIC"] = "W4A16"
    """``FP8_DYNAMIC`` needs no calibration."""
    group_size: int = Field(128, gt=0)
    """Columns that share a scale, for W4A16."""
    calibration_rows: int = Field(512, ge=0)
    """Rows with their images."""
    max_tokens: int = Field(2048, gt=0)
    """A longer calibration row is left out, never cut: a cut row loses placeholders that its image needs."""
    seed: int = Field(0, ge=0)
    """Of the choice of calibration rows."""
