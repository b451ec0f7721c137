"""Configuration of a source: where it is, its format, and what its rows are taken for. Imports no torch."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, Tag

from model.config import Section


class ScorerConfig(Section):
    """The function in ``scoring`` that judges the answers (docs/data.md has the table)."""

    name: str = Field("exact", pattern=r"^[a-z][a-z0-9_]{0,63}$")
    """Its name."""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """Its arguments."""


class Source(Section):
    """What every format has."""

    path: Path
    """The source's directory. No file outside it is read, whatever the source says."""
    file: str | None = None
    """Read this file alone (relative to ``path``); None reads every file of the format, in the order of their names."""
    name: str | None = None
    """What the rows say in ``source``; None takes the directory's name."""
    license: str = Field("LicenseRef-unknown", min_length=1)
    """What the rows say in ``license`` (SPDX) where the source says nothing."""
    task: str | None = None
    """Family of rows that name none; None takes the format's default (docs/data.md)."""
    scorer: ScorerConfig = ScorerConfig()
    """Judge of rows that name none."""
    heldout_share: float = Field(0.1, gt=0, lt=1)
    """Share of the rows without a split of their own that is held out. Chosen by a hash of the row's first medium (of
    its text where it has none), so that all rows about one image fall on one side; at least one row is held out."""
    pretrain_share: float = Field(0.0, ge=0, lt=1)
    """Share of the training rows that get the task ``pretrain``, for lines that pre-train on what they fine-tune on."""
    seed: int = Field(0, ge=0)
    """Of the two hashes above, and of the share that ``repeat_time`` below one keeps."""
    max_row_bytes: int = Field(64 << 20, ge=1 << 10, le=1 << 30)
    """A row with more bytes of text and media is rejected, before it is read where the format tells sizes."""
    videos: Literal["bytes", "uri"] = "bytes"
    """Whether a video file goes into the row, or stays where it is: then the row has its path (relative to ``path``)
    and SHA-256, and its size does not count."""


class Columns(Section):
    """Which column is what. None looks for the usual names."""

    id: str | None = None
    """The row's id."""
    image: str | None = None
    """A path, encoded bytes, ``{bytes, path}``, or a list of these."""
    video: str | None = None
    """The same for a video."""
    question: str | None = None
    """What is asked; a table of captions has none."""
    answer: str | None = None
    """The answer, or a list of accepted ones."""
    system: str | None = None
    """System prompt."""
    conversations: str | None = None
    """A list of turns instead of question and answer: ``{from, value}`` or ``{role, content}``."""
    chosen: str | None = None
    """The better answer of a preference pair."""
    rejected: str | None = None
    """The worse one."""
    split: str | None = None
    """train, or a name for held-out rows (heldout, test, validation, val, dev, eval)."""
    task: str | None = None
    """Family of the row."""


class Captioned(Source):
    """Formats in which an image may come with a text and no question."""

    prompt: str = Field("Describe.", min_length=1)
    """What is asked where the source asks nothing."""


class AutoSource(Captioned):
    """Look at the files and choose one of the formats below, with its defaults."""

    format: Literal["auto"] = "auto"


class InternvlSource(Source):
    """InternVL's meta-json with its jsonl files, or jsonl files alone: conversations, MPO pairs, process rewards."""

    format: Literal["internvl"] = "internvl"


class InternvlRlSource(Source):
    """InternVL's Parquet of queries for online RL (verl's columns)."""

    format: Literal["internvl_rl"] = "internvl_rl"


class LlavaSource(Source):
    """LLaVA's json: one list of conversations about at most one image each."""

    format: Literal["llava"] = "llava"


class SharegptSource(Source):
    """ShareGPT conversations (json or jsonl), text-only or with ``images`` and ``videos``."""

    format: Literal["sharegpt"] = "sharegpt"


class HuggingfaceSource(Captioned):
    """A directory that Hugging Face ``datasets`` wrote: Arrow from ``save_to_disk``, or Parquet per split."""

    format: Literal["huggingface"] = "huggingface"
    columns: Columns = Columns()
    """Which column is what."""


class ParquetSource(Captioned):
    """Any Parquet files."""

    format: Literal["parquet"] = "parquet"
    columns: Columns = Columns()
    """Which column is what."""


class WebdatasetSource(Captioned):
    """Tar files whose members with one key make a row."""

    format: Literal["webdataset"] = "webdataset"


class StreamingSource(Source):
    """jsonl of StreamingVLM and LiveCC: a clip of a video and its words with their seconds."""

    format: Literal["streaming"] = "streaming"


class CaptionsSource(Captioned):
    """A folder of images (or videos), each with a text file of the same name."""

    format: Literal["captions"] = "captions"


class CsvSource(Captioned):
    """A folder of images and a CSV (or TSV) of questions and answers."""

    format: Literal["csv"] = "csv"
    columns: Columns = Columns()
    """Which column is what."""


def _tag(value: Any) -> str:
    return value.get("format", "auto") if isinstance(value, dict) else value.format


AnySource = Annotated[
    Annotated[AutoSource, Tag("auto")]
    | Annotated[InternvlSource, Tag("internvl")]
    | Annotated[InternvlRlSource, Tag("internvl_rl")]
    | Annotated[LlavaSource, Tag("llava")]
    | Annotated[SharegptSource, Tag("sharegpt")]
    | Annotated[HuggingfaceSource, Tag("huggingface")]
    | Annotated[ParquetSource, Tag("parquet")]
    | Annotated[WebdatasetSource, Tag("webdataset")]
    | Annotated[StreamingSource, Tag("streaming")]
    | Annotated[CaptionsSource, Tag("captions")]
    | Annotated[CsvSource, Tag("csv")],
    Discriminator(_tag),
]
"""A source of any format; ``format`` says which, ``auto`` by default."""
