"""The recipe: a typed list of operators in the profile, and the contract that every operator keeps. Imports no Daft.

An operator is three things:

1. A section (pydantic) with a literal ``op``, the thresholds, and ``category``, the word before the colon of its
   reasons. Sections are declared here, or for operators on models and videos in ``model_sections.py``, and named in
   the union ``Operator`` below.
2. Plain functions in a module that says what the operator does. One operator may have both kinds:

       row(section) -> daft.Expression
           Looks at one row alone. The expression reads the columns of a row (``ROW_SCHEMA``), ``reason`` (not null
           where an earlier operator rejected the row: answer nulls there, and do no work), and the facts of earlier
           operators by their names. It gives a struct: ``reason`` (string, null for a good row, without the category)
           and any further fields. A field that has the name of a row's column replaces it where it is not null (for
           the operators that follow, and in the output); every other field is a fact, kept with the row. Batch
           functions of Daft are declared with ``use_process=False``, hold no state that depends on other rows, and
           take ``section`` as a plain argument; a model is loaded once per process by a ``functools.cache``.
       joint(section, rows: components.curate.rows.Rows) -> components.curate.rows.Verdicts
           Looks at all rows together, after the row functions before it. ``rows`` gives the facts in the order of the
           dataset and fetches images where a decision needs them; the verdict says which places are rejected, and why.

3. One ``case`` in ``components.curate.dispatch.implementation``, which names the functions and imports their module.

The same inputs must give the same facts and verdicts, whatever the batches, threads, runner and number of workers.
Results are kept per shard and operator under a hash of the sections and the code of the operators so far: a changed
section, or a changed file in the import closure of an operator's module, re-runs that operator and those after it.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from components.curate.model_sections import (
    ClipScore,
    Languages,
    OcrAgreement,
    SemanticDuplicates,
    Unsafe,
    VideoKeyframes,
    VideoMetadata,
    VideoMotion,
    VideoWords,
)
from model.config import Section


class Schema(Section):
    """Refuse rows that model/data/schema.py refuses. Every recipe begins with it."""

    category: ClassVar[str] = "schema"
    op: Literal["schema"] = "schema"


class Decode(Section):
    """Decode every image and compute its facts: SHA-256, perceptual hash, format, size. Every recipe has it second."""

    category: ClassVar[str] = "image"
    op: Literal["decode"] = "decode"
    max_bytes: int = Field(20_000_000, gt=0)
    """A larger encoded image is rejected."""
    max_pixels: int = Field(40_000_000, gt=0)
    """Width times height, read from the header before anything is decoded."""
    min_side: int = Field(2, ge=1)
    """A smaller image, in pixels of its shorter side, is rejected."""
    videos: bool = False
    """Let videos pass to the video operators. Without them nothing checks that a video can be decoded."""


class Size(Section):
    """Bounds on the sides of every image, in pixels as stored."""

    category: ClassVar[str] = "size"
    op: Literal["size"] = "size"
    min_side: int = Field(28, ge=1)
    """The shorter side is at least this."""
    max_side: int = Field(16_384, ge=1)
    """The longer side is at most this."""


class Aspect(Section):
    """A bound on the longer side over the shorter."""

    category: ClassVar[str] = "aspect"
    op: Literal["aspect"] = "aspect"
    largest: float = Field(20.0, ge=1)
    """Panoramas and rules have a larger ratio, and tile badly."""


class Entropy(Section):
    """A bound on the Shannon entropy of the 256 grey levels: blank and one-coloured images have next to none."""

    category: ClassVar[str] = "entropy"
    op: Literal["entropy"] = "entropy"
    min_bits: float = Field(0.5, ge=0, le=8)
    """Bits per pixel."""


class Blur(Section):
    """A bound on the variance of the Laplacian of the grey image at 512 pixels: a blurred image has a small one."""

    category: ClassVar[str] = "blur"
    op: Literal["blur"] = "blur"
    min_variance: float = Field(20.0, ge=0)
    """Of grey levels from 0 to 255; 100 is a common bound for photographs, drawings lie far above."""


class TextImageRatio(Section):
    """Bounds on the characters of text (placeholders not counted) per image; rows without images pass."""

    category: ClassVar[str] = "text_image_ratio"
    op: Literal["text_image_ratio"] = "text_image_ratio"
    low: float = Field(1.0, ge=0)
    """Fewer say nothing about the image."""
    high: float = Field(20_000.0, gt=0)
    """More are a document with a picture somewhere."""


class Licences(Section):
    """Only rows under a listed licence pass."""

    category: ClassVar[str] = "licence"
    op: Literal["licences"] = "licences"
    allowed: tuple[str, ...] = Field(min_length=1)
    """SPDX identifiers, compared without regard to case."""


class RedactPii(Section):
    """Replace personal data in every text of a row; a row whose accepted answer is nothing else is rejected."""

    category: ClassVar[str] = "pii"
    op: Literal["redact_pii"] = "redact_pii"
    kinds: tuple[Literal["email", "iban", "card", "ip", "phone"], ...] = ("email", "iban", "card", "ip", "phone")
    """What is looked for, in this order."""


class ExactDuplicates(Section):
    """Refuse a row whose id, or whose messages and media (bytes, and clip of a video), an earlier row has."""

    category: ClassVar[str] = "duplicate"
    op: Literal["exact_duplicates"] = "exact_duplicates"


class NearDuplicates(Section):
    """Refuse a row with the messages of an earlier row and images that look the same, by hash and then by pixels."""

    category: ClassVar[str] = "near_duplicate"
    op: Literal["near_duplicates"] = "near_duplicates"
    phash_distance: int = Field(4, ge=0, le=64)
    """Largest Hamming distance at which two images are candidates."""
    pixel_difference: float = Field(0.1, ge=0, le=1)
    """Largest difference (of 1) of any block of pixels at which candidates are duplicates indeed."""


class NearDuplicateTexts(Section):
    """Refuse a row with nearly the words of an earlier row (MinHash, confirmed by Jaccard) about the same images.

    Images are the same when their perceptual hashes are equal and their bytes or pixels agree; videos when bytes and
    clip are.
    """

    category: ClassVar[str] = "near_duplicate_text"
    op: Literal["near_duplicate_texts"] = "near_duplicate_texts"
    ngram: int = Field(3, ge=1)
    """Words of a shingle; a shorter text is one shingle."""
    jaccard: float = Field(0.8, gt=0, le=1)
    """Share of common shingles from which on two texts are the same."""
    bands: int = Field(32, ge=1, le=256)
    """Bands of the signature; texts that agree in a whole band are candidates."""
    rows_per_band: int = Field(4, ge=1, le=32)
    """Hashes per band: a pair of Jaccard s is a candidate with probability 1 - (1 - s^rows)^bands."""


class Decontaminate(Section):
    """Refuse rows that give an evaluation row away: its image or (the same bytes) video with its answer, or its words.

    A video is the same whatever clip of it a row shows.
    """

    category: ClassVar[str] = "contaminated"
    op: Literal["decontaminate"] = "decontaminate"
    phash_distance: int = Field(4, ge=0, le=64)
    """Largest Hamming distance at which an image may be one of the evaluation."""
    pixel_difference: float = Field(0.1, ge=0, le=1)
    """Largest difference (of 1) of any block of pixels at which it is."""
    ngram: int = Field(8, ge=1)
    """Words in an n-gram for text-only rows."""
    evaluation_sets: tuple[Path, ...] = ()
    """Dataset directories beside the held-out rows of the line, which are always looked at."""


class Statistics(Section):
    """Characters, words and image tiles per row, for packing. Rejects nothing and needs no tokenizer."""

    category: ClassVar[str] = "statistics"
    op: Literal["statistics"] = "statistics"
    tile: int = Field(448, ge=1)
    """Side of a tile in pixels."""
    max_tiles: int = Field(12, ge=1)
    """Tiles of a row's images, the thumbnails not counted."""


class Difficulty(Section):
    """Keep rows that a model answers neither always nor never."""

    category: ClassVar[str] = "difficulty"
    op: Literal["difficulty"] = "difficulty"
    accuracies: Path
    """Parquet file with the columns ``id`` and ``accuracy`` (from 0 to 1)."""
    low: float = Field(0.2, ge=0, le=1)
    """Least accuracy (InternVL3.5, section 2.3: 0.2)."""
    high: float = Field(0.8, ge=0, le=1)
    """Largest accuracy (InternVL3.5, section 2.3: 0.8)."""
    keep_unmeasured: bool = False
    """Keep rows that the file does not have."""


class Mixture(Section):
    """Take rows of each group in proportion to (weight x number of its sound rows) ** (1 / temperature)."""

    category: ClassVar[str] = "mixture"
    op: Literal["mixture"] = "mixture"
    by: Literal["task", "source"] = "task"
    """What makes a group."""
    rows: int | None = Field(None, ge=1)
    """Rows in all; as many as are there by default."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Weight of a group; 1 where it is not given, 0 takes none of it."""
    temperature: float = Field(1.0, gt=0)
    """1 keeps the proportions, a large one makes groups equal."""
    oversample: bool = False
    """Repeat rows (ID~2, ID~3, ...) of groups that have too few; else such a group gives what it has."""
    seed: int = 0
    """Which rows of a group are taken."""


Operator = Annotated[
    Schema
    | Decode
    | Size
    | Aspect
    | Entropy
    | Blur
    | TextImageRatio
    | Licences
    | RedactPii
    | ExactDuplicates
    | NearDuplicates
    | NearDuplicateTexts
    | Decontaminate
    | Statistics
    | Difficulty
    | Mixture
    | Languages
    | Unsafe
    | SemanticDuplicates
    | OcrAgreement
    | ClipScore
    | VideoMetadata
    | VideoKeyframes
    | VideoMotion
    | VideoWords,
    Field(discriminator="op"),
]
"""Every operator that a recipe may name."""

DEFAULT: tuple[Operator, ...] = (Schema(), Decode(), ExactDuplicates(), NearDuplicates(), Decontaminate())
"""Sound, distinct rows that give nothing of the evaluation away."""


def check_recipe(operators: tuple[Operator, ...]) -> tuple[Operator, ...]:
    """The same operators.

    Raises:
        ValueError: they do not begin with ``schema`` and ``decode``, on whose facts the others build.
    """
    if [section.op for section in operators[:2]] != ["schema", "decode"]:
        raise ValueError("a recipe begins with schema and decode: the other operators build on sound rows")
    if [section.op for section in operators[2:] if section.op in ("schema", "decode")]:
        raise ValueError("schema and decode stand in a recipe once")
    return operators
