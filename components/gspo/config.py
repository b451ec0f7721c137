"""Configuration of ``gspo``. Imports no torch."""

from pydantic import Field, model_validator

from model.config import Section
from model.objectives.config import GspoObjective
from model.training.config import TrainingConfig


class RolloutConfig(Section):
    """How answers are sampled (the defaults are those of the released scripts)."""

    prompts: int = Field(512, gt=0)
    """Queries in one rollout."""
    responses: int = Field(16, ge=2)
    """Answers per query: the group that advantages are taken over."""
    temperature: float = Field(1.0, gt=0)
    """Of the sampling."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample among the likeliest tokens of this total probability."""
    max_prompt_tokens: int = Field(8192, gt=0)
    """A longer query is left out."""
    max_new_tokens: int = Field(32768, gt=0)
    """Longest answer."""


class RewardConfig(Section):
    """Rule-based reward = accuracy_weight * right + format_weight * well-formed."""

    accuracy_weight: float = Field(0.9, ge=0, le=1)
    """Of a right answer."""
    format_weight: float = Field(0.1, ge=0, le=1)
    """Of thoughts in their tags followed by a boxed answer."""


class GspoConfig(Section):
    """Group sequence policy optimisation: the online stage of Cascade RL."""

    training: TrainingConfig
    """``batch_size`` counts answers; ``steps`` counts optimiser steps, several of which share a rollout."""
    objective: GspoObjective
    """Clipping of the importance ratio."""
    rollout: RolloutConfig = RolloutConfig()
    """How answers are sampled."""
    reward: RewardConfig = RewardConfig()
    """How answers are rewarded."""
    heldout_rows: int = Field(64, ge=1)
    """Rows per family that are scored at the end."""

    @model_validator(mode="after")
    def _whole_updates(self) -> "GspoConfig":
        if self.rollout.prompts * self.rollout.responses % self.training.batch_size:
            raise ValueError("training.batch_size must divide rollout.prompts * rollout.responses")
        return self
