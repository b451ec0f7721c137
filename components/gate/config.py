"""Configuration of ``gate``. Imports no torch."""

from pydantic import Field

from components.evaluate.config import EvaluateConfig
from model.config import Section


class GateConfig(Section):
    """The criterion: not worse than the champion by more than a margin, on the same rows."""

    registered_model: str = Field("fovea", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name in the model registry."""
    margin: float = Field(0.02, ge=0, le=1)
    """The lower 95 % bound of (challenger - champion) must be above minus this."""
    evaluation: EvaluateConfig = EvaluateConfig()
    """Used when the champion has no answers for these rows yet."""
