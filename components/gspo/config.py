"""Configuration of ``gspo``. Imports no torch."""

from pydantic import Field, model_validator

from model.config import Section
from model.objectives.config import GspoObjective
from model.training.config import TrainingConfig
from model.training.policy_config import RolloutConfig


class RewardConfig(Section):
    """Rule-based reward = accuracy_weight * right + format_weight * well-formed - length penalty."""

    accuracy_weight: float = Field(0.9, ge=0, le=1)
    """Of a right answer."""
    format_weight: float = Field(0.1, ge=0, le=1)
    """Of thoughts in their tags followed by a boxed answer."""
    soft_length: int | None = Field(None, ge=0)
    """Tokens from which an answer loses reward, linearly up to ``rollout.max_new_tokens``; None takes nothing."""
    length_penalty: float = Field(0.5, ge=0)
    """What an answer of ``rollout.max_new_tokens`` loses."""
    seconds: float = Field(2.0, gt=0)
    """Processor time for one answer; one that needs more has no reward and is left out of its group."""
    workers: int = Field(1, gt=0)
    """Answers that a process has judged at the same time."""


class GspoConfig(Section):
    """Group sequence policy optimisation: the online stage of Cascade RL."""

    training: TrainingConfig
    """``batch_size`` counts answers; ``steps`` counts optimiser steps, several of which share a rollout. ``max_tokens``
    and ``loss_averaging`` have no part in it: ``rollout`` bounds query and answer."""
    objective: GspoObjective
    """Clipping of the importance ratio."""
    rollout: RolloutConfig = RolloutConfig()
    """How answers are sampled."""
    reward: RewardConfig = RewardConfig()
    """How answers are rewarded."""
    heldout_rows: int = Field(64, ge=1)
    """Rows per family that are scored at the end."""

    @model_validator(mode="after")
    def _fits(self) -> "GspoConfig":
        if self.rollout.prompts * self.rollout.responses % self.training.batch_size:
            raise ValueError("training.batch_size must divide rollout.prompts * rollout.responses")
        if self.training.packing is not None:
            raise ValueError("training.packing: answers are packed by their prompts; leave it out")
        if self.training.jpeg_quality is not None:
            raise ValueError("training.jpeg_quality: answers are to the image as it is; leave it out")
        if self.training.text_to_multimodal is not None:
            raise ValueError("training.text_to_multimodal: queries come in shuffled epochs; leave it out")
        if self.rollout.server is not None and self.training.lora is not None:
            raise ValueError("rollout.server: is sent whole weights, not adapters; leave training.lora out")
        if self.rollout.prompts * self.rollout.responses > self.training.batch_size:
            # The old log-probabilities have no chance in them: ratios would leave 1 without an update.
            if self.training.drop_path_rate:
                raise ValueError("training.drop_path_rate: not with several steps on a rollout; leave it at 0")
            if self.training.lora is not None and self.training.lora.dropout:
                raise ValueError("training.lora.dropout: not with several steps on a rollout; leave it at 0")
        soft, limit = self.reward.soft_length, self.rollout.max_new_tokens
        if soft is not None and soft >= limit:
            raise ValueError(f"reward.soft_length must be below rollout.max_new_tokens, which is {limit}")
        return self
