"""Configuration of ``route``. Imports no torch."""

from pydantic import Field

from model.config import Section
from model.objectives.config import RouterObjective
from model.training.config import TrainingConfig


class RouteConfig(Section):
    """Visual consistency learning, second half: the router alone trains, everything else is frozen."""

    training: TrainingConfig
    """Of the router."""
    objective: RouterObjective
    """How a tile gets its label."""
    compress_above: float = Field(0.5, ge=0, le=1)
    """A tile is compressed when the router's P(compress) is at least this: absolute and per tile, so that no batch
    neighbour changes an answer."""
    heldout_rows: int = Field(64, ge=1)
    """Rows per family that are scored at the end."""
