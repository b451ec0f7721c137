"""Configuration of the training loop. Imports no torch."""

from typing import Literal

from pydantic import Field, model_validator

from model.config import Precision, Section


class PackingConfig(Section):
    """Samples are laid end to end until a budget is full; attention never crosses from one to the next."""

    max_tokens: int = Field(gt=0)
    """Tokens in a pack."""
    max_units: int = Field(gt=0)
    """Visual units in a pack: tiles for InternVL, merged patches for the Qwen-VLs."""
    lookahead: int = Field(256, gt=0)
    """Samples among which the packer chooses what goes together."""


class ZeroConfig(Section):
    """DeepSpeed ZeRO: what is divided among the processes (arXiv 1910.02054)."""

    stage: Literal[1, 2, 3]
    """1: optimiser states; 2: gradients too; 3: parameters too."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep optimiser states, or parameters too (stage 3), in the memory of the host."""

    @model_validator(mode="after")
    def _offload_fits(self) -> "ZeroConfig":
        if self.offload == "all" and self.stage != 3:
            raise ValueError("offload: all needs stage 3")
        return self


class LoraConfig(Section):
    """Low-rank adapters instead of the weights themselves (arXiv 2106.09685), through peft."""

    rank: int = Field(8, gt=0)
    """Rank of every adapter."""
    alpha: float = Field(16.0, gt=0)
    """An adapter's product is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Before the first matrix of an adapter."""
    targets: tuple[Literal["language", "vision", "projector"], ...] = Field(("language",), min_length=1)
    """The parts whose linear layers get adapters."""


class TrainingConfig(Section):
    """One training stage: optimiser, schedule, batch, precision, checkpoints."""

    learning_rate: float = Field(gt=0)
    """Peak, after the warm-up."""
    vision_learning_rate: float | None = Field(None, gt=0)
    """Peak of the vision tower; that of the rest when None."""
    projector_learning_rate: float | None = Field(None, gt=0)
    """Peak of the projector; that of the rest when None."""
    compressed_learning_rate: float | None = Field(None, gt=0)
    """Peak of the second projector, which shows compressed tiles; that of the projector when None."""
    steps: int = Field(gt=0)
    """Optimiser steps."""
    batch_size: int = Field(gt=0)
    """Rows in one optimiser step, over all ranks; packs when rows are packed."""
    micro_batch_size: int | None = Field(None, gt=0)
    """Rows in one forward pass; the whole batch when None. A pack is always a forward pass of its own."""
    packing: PackingConfig | None = None
    """Lay rows end to end; None pads them to the longest of a forward pass."""
    text_to_multimodal: tuple[int, int] | None = None
    """Text-only rows to rows with media, e.g. [2, 5] for the published 1 : 2.5; exact over any window. None takes rows
    as they come."""
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
    precision: Precision = "bfloat16"
    """Of the forward pass; weights and optimiser stay in float32."""
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    """Implementation of attention in transformers, for padded rows. Packs have their own, chosen by the hardware."""
    activation_checkpointing: Literal["none", "language", "vision", "all"] = "none"
    """Layers whose activations are computed again in the backward pass instead of kept."""
    loss_chunk: int = Field(1024, gt=0)
    """Positions whose logits exist at the same time."""
    compile: bool = False
    """Compile the layers with ``torch.compile``."""
    processes: int = Field(1, gt=0)
    """Processes on this machine, one per GPU."""
    zero: ZeroConfig | None = None
    """Divide states among the processes with DeepSpeed; None keeps a copy in each."""
    lora: LoraConfig | None = None
    """Train low-rank adapters; None trains the weights that ``train`` names."""
    threads: int = Field(2, gt=0)
    """CPU threads; part of the identity of a result, because sums differ in the last bits with it."""
    seed: int = Field(42, ge=0)
    """Of the order of rows, of dropped paths and of re-encoding."""
    max_tokens: int = Field(32768, gt=0)
    """A longer row is refused."""
    train: Literal["all", "without_vision", "projector"] = "all"
    """Which parameters train: all, all but the vision tower, or the projector alone (warm-up)."""
    checkpoint_every: int = Field(200, gt=0)
    """Optimiser steps between checkpoints in the state directory."""
    log_every: int = Field(10, gt=0)
    """Optimiser steps between records of the loss."""
    jpeg_quality: tuple[int, int] | None = None
    """Random in-memory JPEG re-encoding at a quality in this closed range; none when None."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingConfig":
        if self.text_to_multimodal is not None and min(self.text_to_multimodal) < 1:
            raise ValueError("text_to_multimodal: both numbers must be above zero")
        if self.packing is not None and self.micro_batch_size not in (None, 1):
            raise ValueError("micro_batch_size: a pack is a forward pass of its own; leave it out")
        if self.compile and self.zero is not None and self.zero.stage == 3:
            raise ValueError("compile: not with zero.stage 3, whose weights are gathered around every layer")
        if self.zero is not None and self.processes == 1:
            # DeepSpeed 0.19.8 accumulates wrong gradients in a world of one, at stage 3 and with offloading.
            raise ValueError("zero: divides states among processes; processes must be above 1")
        if self.lora is not None and self.train != "all":
            raise ValueError("lora: names its own targets; leave train out")
        return self
