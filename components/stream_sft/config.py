"""Configuration of ``stream_sft``. Imports no torch."""

from typing import Literal

from pydantic import Field, model_validator

from model.config import Section
from model.streaming.config import CacheConfig
from model.training.config import TrainingConfig


class StreamTrainingConfig(TrainingConfig):
    """One of the two stages of streaming fine-tuning."""

    train: Literal["language"] = "language"
    """The language model trains; vision tower and merger are frozen (StreamingVLM's released scripts)."""


class ChunkConfig(Section):
    """How a video becomes rows: overlapped chunks, attended to in full (StreamingVLM, section 3.2)."""

    seconds: float = Field(24.0, gt=0)
    """Length of a chunk; longer than the vision window."""
    overlap_seconds: float = Field(12.0, ge=0)
    """Shared by neighbouring chunks."""
    min_words_per_second: float = Field(2.0, ge=0)
    """A chunk with fewer spoken words is left out."""
    min_frame_pixels: int = Field(78_400, gt=0)
    """A frame is resized to this many pixels at least: 100 tokens of 28 x 28."""
    max_row_pixels: int = Field(19_267_584, gt=0)
    """Of all frames of a row together: 24,576 patches of 28 x 28."""
    max_frames: int = Field(480, gt=0)
    """Of a row."""

    @model_validator(mode="after")
    def _moves_on(self) -> "ChunkConfig":
        if self.overlap_seconds >= self.seconds:
            raise ValueError("overlap_seconds must be smaller than seconds")
        return self


class StreamSftConfig(Section):
    """Fine-tuning on chunks that look like what the bounded cache holds."""

    training: StreamTrainingConfig
    """The first stage, on overlapped chunks."""
    annealing: StreamTrainingConfig | None = None
    """A second stage on the best clips."""
    chunks: ChunkConfig = ChunkConfig()
    """How rows are cut from videos."""
    cache: CacheConfig = CacheConfig()
    """What the model will find in its cache, which the rows imitate."""
    heldout_rows: int = Field(64, ge=1)
    """Rows per family that are scored at the end."""
