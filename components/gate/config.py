"""Configuration of ``gate``. Imports no torch."""

from pydantic import Field

from model.config import Section


class GateConfig(Section):
    """The criterion: not worse than the champion by more than a margin, on the same rows."""

    registered_model: str = Field("fovea", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name in the model registry."""
    margin: float = Field(0.02, ge=0, le=1)
    """The lower 95 % bound of (challenger - champion) must be above minus this."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples of the paired bootstrap interval."""
    seed: int = Field(0, ge=0)
    """Of the resampling."""
    batch_size: int = Field(64, gt=0)
    """Rows answered together when the champion has no recorded answers for these rows. How it answers (precision,
    answer length) is taken from the challenger's evaluation, so that both are asked alike."""
    threads: int = Field(2, gt=0)
    """CPU threads for the same."""
