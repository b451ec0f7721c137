"""Configuration of ``evaluate``. Imports no torch."""

from pydantic import Field

from model.config import Precision, Section


class EvaluateConfig(Section):
    """How answers are generated and how intervals are drawn."""

    batch_size: int = Field(64, gt=0)
    """Rows answered together."""
    max_new_tokens: int = Field(32, gt=0)
    """Longest answer."""
    precision: Precision = "float32"
    """Of the forward pass."""
    threads: int = Field(2, gt=0)
    """CPU threads; part of the identity of a result."""
    swapped: bool = True
    """Also answer with images swapped between rows."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples of a bootstrap interval."""
    seed: int = Field(0, ge=0)
    """Of the swapping and the resampling."""
