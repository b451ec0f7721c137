"""Configuration of ``collect``. Imports no torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from model.config import Section

Family = Literal["transcribe", "read", "count", "maximum", "locate"]


GLYPH_SIDE = 8
"""Side of scikit-learn's glyphs, before magnification."""


class DigitsConfig(Section):
    """The embedded corpus: scikit-learn's handwritten digits on canvases."""

    seed: int = Field(0, ge=0)
    """Of everything drawn: the same seed gives the same corpus."""
    canvas: int = Field(56, ge=16, le=4096)
    """Side of the square canvas in pixels."""
    wide_share: float = Field(0.0, ge=0, le=1)
    """Share of canvases that are two tiles wide."""
    digits: tuple[int, int] = (1, 4)
    """Fewest and most digits on a canvas."""
    cells: int = Field(2, ge=1, le=16)
    """Rows and columns of the coarse grid on a square canvas; every digit lies in a cell of its own."""
    scale: tuple[float, float] = (2.0, 3.25)
    """Smallest and largest magnification of the 8 x 8 glyphs."""
    transcriptions: int = Field(ge=1)
    """Training rows of the family ``transcribe``."""
    questions: int = Field(ge=1)
    """Training rows of each of the four question families."""
    mix: dict[Family, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Families that get more or fewer training rows than the above, as a factor."""
    boxed_share: float = Field(0.0, ge=0, le=1)
    """Share of the transcriptions that also give the box of each digit."""
    transcribe_share: float = Field(0.0, ge=0, le=1)
    """Share of the training questions ``read`` in the words of pre-training, which fine-tuning makes a model forget."""
    heldout: int = Field(250, ge=1)
    """Held-out rows of each family."""
    heldout_glyph_share: float = Field(0.2, gt=0, lt=1)
    """Share of the glyphs that occur in held-out rows only."""

    @model_validator(mode="after")
    def _fits(self) -> "DigitsConfig":
        fewest, most = self.digits
        smallest, largest = self.scale
        if not 1 <= fewest <= most:
            raise ValueError("digits must be (fewest, most) with 1 <= fewest <= most")
        if not 1 <= smallest <= largest:
            raise ValueError("scale must be (smallest, largest) with 1 <= smallest <= largest")
        if most > self.cells**2:
            raise ValueError(f"{most} digits do not fit in {self.cells} x {self.cells} cells")
        if round(GLYPH_SIDE * largest) > self.canvas // self.cells:
            raise ValueError(f"a digit of scale {largest} does not fit in a cell of {self.canvas // self.cells} pixels")
        return self


class CollectConfig(Section):
    """Where the rows come from, and the tokenizer trained on them."""

    digits: DigitsConfig | None = None
    """Build the embedded corpus."""
    dataset: Path | None = None
    """Or take an existing dataset (docs/data.md): a directory with ``train`` and ``heldout``."""
    tokenizer: Path | None = None
    """Take this tokenizer instead of training one."""
    vocabulary: int = Field(512, ge=300)
    """Size of the byte-level BPE trained on the corpus."""
    shards: int = Field(1, ge=1)
    """Parquet files per dataset."""

    @model_validator(mode="after")
    def _one_source(self) -> "CollectConfig":
        if (self.digits is None) == (self.dataset is None):
            raise ValueError("give exactly one of digits and dataset")
        return self
