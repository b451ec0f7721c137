"""Configuration of ``build_preferences``. Imports no torch."""

from pydantic import Field

from model.config import Section


class BuildPreferencesConfig(Section):
    """Chosen and rejected answers from rollouts (the MPO data pipeline; the defaults are the released ones)."""

    rollouts: int = Field(32, ge=2)
    """Answers sampled per query."""
    temperature: float = Field(0.7, gt=0)
    """Of the sampling."""
    top_k: int = Field(50, ge=1)
    """Sample among this many likeliest tokens."""
    max_new_tokens: int = Field(4096, gt=0)
    """Longest answer."""
    max_tokens: int = Field(16384, gt=0)
    """Prompt and answer together."""
    max_queries: int = Field(7000, gt=0)
    """Queries taken from one dataset."""
    correct_above: float = Field(0.9, ge=0, le=1)
    """An answer is right when its scorer gives more than this."""
    pairs_per_query: int = Field(15, ge=1)
    """Pairs drawn from right x wrong."""
    dropout_start_ratio: float | None = Field(0.5, gt=0, lt=1)
    """Where there is no ground truth: this share of the answer's words is kept and continued without the image to
    make the rejected answer (DropoutNTP); None leaves such queries out."""
    seed: int = Field(0, ge=0)
    """Of the sampling and the drawing of pairs."""
