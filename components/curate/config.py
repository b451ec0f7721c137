"""Configuration of ``curate``. Imports no torch."""

from pydantic import Field

from model.config import Section


class CurateConfig(Section):
    """Thresholds of the operators, and the tasks of each stage."""

    pretrain_tasks: tuple[str, ...] = ("transcribe",)
    """Rows of these tasks go to pre-training; all others to fine-tuning."""
    max_image_bytes: int = Field(20_000_000, gt=0)
    """A larger encoded image is rejected."""
    max_image_pixels: int = Field(40_000_000, gt=0)
    """Width times height, read from the header before anything is decoded."""
    min_image_side: int = Field(2, ge=1)
    """A smaller image, in pixels of its shorter side, is rejected."""
    phash_distance: int = Field(4, ge=0, le=64)
    """Largest Hamming distance at which two images are candidates for near-duplicates."""
    pixel_difference: float = Field(0.1, ge=0, le=1)
    """Largest difference (of 1) of any block of pixels at which candidates are duplicates indeed."""
    ngram: int = Field(8, ge=1)
    """Words in an n-gram for the decontamination of text-only rows."""
    shards: int = Field(1, ge=1)
    """Parquet files per dataset."""
