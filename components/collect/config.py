"""Configuration of ``collect``. Imports no torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from components.collect.embedded.config import CanvasConfig, EmbeddedConfig
from components.collect.importers.config import AnySource
from model.config import Section

Family = Literal["transcribe", "read", "count", "maximum", "locate"]


class DigitsConfig(CanvasConfig):
    """The embedded corpus: scikit-learn's handwritten digits on canvases."""

    seed: int = Field(0, ge=0)
    """Of everything drawn: the same seed gives the same corpus."""
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


class CollectConfig(Section):
    """Where the rows come from, and the tokenizer trained on them."""

    digits: DigitsConfig | None = None
    """Build the embedded corpus: five families about handwritten digits."""
    embedded: EmbeddedConfig | None = None
    """Build further families of the embedded corpus, with or without ``digits``, whose seed and held-out share they
    take where they have none of their own."""
    dataset: Path | None = None
    """Or take an existing dataset (docs/data.md): a directory with ``train`` and ``heldout``."""
    source: AnySource | None = None
    """Or import a directory of another format (docs/data.md, "Formats")."""
    tokenizer: Path | None = None
    """Take this tokenizer instead of training one."""
    vocabulary: int = Field(512, ge=300)
    """Size of the byte-level BPE trained on the corpus."""
    shards: int = Field(1, ge=1)
    """Parquet files per dataset."""

    @model_validator(mode="after")
    def _one_source(self) -> "CollectConfig":
        built_in = self.digits is not None or self.embedded is not None
        if built_in + (self.dataset is not None) + (self.source is not None) != 1:
            raise ValueError("give exactly one of digits, dataset and source; embedded stands alone or beside digits")
        if self.digits is not None and self.embedded is not None:
            ours = {"seed": self.digits.seed, "heldout_share": self.digits.heldout_glyph_share}
            unsaid = {name: value for name, value in ours.items() if name not in self.embedded.model_fields_set}
            # Sections are frozen, and this one is still being made.
            object.__setattr__(self, "embedded", self.embedded.model_copy(update=unsaid))
            if ours != {name: getattr(self.embedded, name) for name in ours}:
                raise ValueError("digits and embedded need one seed and one held-out share: they share the glyphs")
        return self
