"""Configuration of ``select_queries``. Imports no torch."""

from pydantic import Field, model_validator

from model.config import Section


class SelectQueriesConfig(Section):
    """Queries of the right difficulty for online RL (InternVL3.5, section 2.3)."""

    lowest_accuracy: float = Field(0.2, ge=0, le=1)
    """Over the rollouts that ``build_preferences`` made."""
    highest_accuracy: float = Field(0.8, ge=0, le=1)
    """Over the same rollouts; an easier query is left out."""
    shards: int = Field(1, ge=1)
    """Parquet files."""

    @model_validator(mode="after")
    def _ordered(self) -> "SelectQueriesConfig":
        if self.lowest_accuracy > self.highest_accuracy:
            raise ValueError("lowest_accuracy must not exceed highest_accuracy")
        return self
