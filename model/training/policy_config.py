"""Configuration of the rollouts that online reinforcement learning trains on. Imports no torch."""

from typing import Literal

from pydantic import Field, model_validator

from model.config import Section


class SamplingServer(Section):
    """A vLLM server that samples answers."""

    url: str = Field(pattern=r"^https?://[^/\s]+$")
    """Where it listens, without a path."""
    model: str = Field(min_length=1)
    """The name that it serves the model under."""
    concurrency: int = Field(64, gt=0)
    """Queries that a process asks at the same time."""
    timeout_s: float = Field(3600.0, gt=0)
    """Seconds until a query has all of its answers, its wait in the queue included; more end the run."""


class RolloutServer(SamplingServer):
    """One in its development mode, which is sent the trainer's weights."""

    transfer: Literal["directory", "nccl"] = "directory"
    """How weights reach it: through a directory that it sees under the same path, or from GPU to GPU."""


class RolloutConfig(Section):
    """How answers are sampled (the defaults are those of the released scripts)."""

    prompts: int = Field(512, gt=0)
    """Queries in one rollout."""
    responses: int = Field(16, ge=2)
    """Answers per query: the group that advantages are taken over."""
    temperature: float = Field(1.0, gt=0)
    """Of the sampling. Ratios are those of the model itself, at temperature 1."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample among the likeliest tokens of this total probability."""
    top_k: int = Field(0, ge=0)
    """Sample among so many likeliest tokens; 0 for all."""
    max_prompt_tokens: int = Field(8192, gt=0)
    """A longer query is left out, and so is one that leaves no room in the model's context."""
    max_new_tokens: int = Field(32768, gt=0)
    """Longest answer, its end of turn included."""
    cut: Literal["rewarded", "left_out"] = "rewarded"
    """An answer cut at that limit has the reward of one (section ``reward``), or is no part of its group."""
    kept_together: int = Field(32, gt=0)
    """Queries of a process that are answered before the answers are stored: what a kill loses at most."""
    cache_tokens: int = Field(65536, gt=0)
    """Positions, padding included, that are decoded together: bounds the memory of the sampling."""
    server: RolloutServer | None = None
    """Samples instead of the network that trains; its rounding depends on what it does besides."""
    importance_cap: float | None = Field(None, gt=0)
    """Weigh answers by min(pi_old / pi_sampler, cap), which a server needs; None does not."""

    @model_validator(mode="after")
    def _corrected(self) -> "RolloutConfig":
        if self.server is not None and self.importance_cap is None:
            raise ValueError("importance_cap: a server samples from other numbers than the trainer has; set it")
        return self
