"""Configuration of ``build_preferences``. Imports no torch."""

from pydantic import Field, model_validator

from model.config import Precision, Section
from model.training.policy_config import SamplingServer


class BuildPreferencesConfig(Section):
    """Chosen and rejected answers from rollouts (the MPO data pipeline; the defaults are the released ones)."""

    rollouts: int = Field(32, ge=2)
    """Answers sampled per query."""
    temperature: float = Field(0.7, gt=0)
    """Of the sampling."""
    top_k: int = Field(50, ge=0)
    """Sample among this many likeliest tokens; 0 for all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample among the likeliest tokens of this total probability."""
    max_new_tokens: int = Field(4096, gt=0)
    """Longest answer, its end of turn included."""
    max_tokens: int = Field(16384, gt=0)
    """Prompt and longest answer together; a query with a longer prompt is left out."""
    max_queries: int = Field(7000, gt=0)
    """Queries taken from one source, drawn by ``seed``."""
    correct_above: float = Field(0.9, ge=0, le=1)
    """An answer is right when its scorer gives more than this."""
    pairs_per_query: int = Field(15, ge=1)
    """Pairs drawn from right x wrong; what is left of them is drawn from right x malformed."""
    format_pairs: bool = True
    """Also pair right answers with malformed ones: cut, not in the format that the row asks for, or unreadable."""
    open_tasks: tuple[str, ...] = ()
    """Families whose answers no scorer can judge (captions, conversation): their pairs come from DropoutNTP."""
    dropout_start_ratio: float | None = Field(0.5, gt=0, lt=1)
    """Where there is no ground truth (``open_tasks``): this share of the answer's words is kept and continued without
    the image to make the rejected answer (DropoutNTP); None leaves such queries out."""
    precision: Precision = "float32"
    """Of the forward pass."""
    threads: int = Field(2, gt=0)
    """CPU threads; part of the identity of a result."""
    decode_tokens: int = Field(65536, gt=0)
    """Positions of the key-value cache that are decoded together: bounds memory, changes no answer."""
    server: SamplingServer | None = None
    """Serves the step's model and samples instead of this process, which then loads no weights. Prompts are compared
    with ours; its weights cannot be. A server rounds by what it does besides: after a
    kill the rest of the answers may differ from those of a run that nobody killed."""
    shards: int = Field(1, ge=1)
    """Parquet files of the pairs."""
    seed: int = Field(0, ge=0)
    """Of the choice of queries, the sampling and the drawing of pairs."""

    @model_validator(mode="after")
    def _answer_fits(self) -> "BuildPreferencesConfig":
        if self.max_new_tokens >= self.max_tokens:
            raise ValueError("max_tokens counts prompt and answer: it must be greater than max_new_tokens")
        return self
