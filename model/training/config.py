"""Configuration of the training loop. Imports no torch."""

from typing import Literal

from pydantic import Field

from model.config import Section


class TrainingConfig(Section):
    """One training stage: optimiser, schedule, batch, precision, checkpoints."""

    learning_rate: float = Field(gt=0)
    """Peak, after the warm-up."""
    steps: int = Field(gt=0)
    """Optimiser steps."""
    batch_size: int = Field(gt=0)
    """Rows in one optimiser step, over all ranks."""
    micro_batch_size: int | None = Field(None, gt=0)
    """Rows in one forward pass; the whole batch when None."""
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    """Share of the steps in which the rate rises linearly from zero."""
    min_learning_rate_ratio: float = Field(0.0, ge=0, le=1)
    """The cosine schedule ends at this share of the learning rate."""
    weight_decay: float = Field(0.05, ge=0)
    """Of AdamW, decoupled."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    eps: float = Field(1e-8, gt=0)
    """Of AdamW."""
    drop_path_rate: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth of the vision tower, linear over its layers."""
    grad_clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    loss_averaging: Literal["token", "sample", "square"] = "square"
    """Weight of a token in a sample with N loss tokens: 1, 1/N, 1/sqrt(N) (InternVL3.5, section 2.2)."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the forward pass; weights and optimiser stay in float32."""
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    """Implementation of attention in transformers."""
    threads: int = Field(2, gt=0)
    """CPU threads; part of the identity of a result, because sums differ in the last bits with it."""
    seed: int = Field(42, ge=0)
    """Of the order of rows, of dropped paths and of re-encoding."""
    max_tokens: int = Field(32768, gt=0)
    """A longer row is refused."""
    train: Literal["all", "projector"] = "all"
    """Which parameters train: all, or the projector alone (warm-up)."""
    checkpoint_every: int = Field(200, gt=0)
    """Optimiser steps between checkpoints in the state directory."""
    log_every: int = Field(10, gt=0)
    """Optimiser steps between records of the loss."""
    jpeg_quality: tuple[int, int] | None = None
    """Random in-memory JPEG re-encoding at a quality in this closed range; none when None."""
