"""Sampled answers on disk: ``rollouts.parquet``, one row per query, with every answer and its verdict. No torch.

``build_preferences`` writes it and ``select_queries`` reads it. Text is kept and token ids are not: what is made of
rollouts does not depend on a tokenizer.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from model.data.artifact import file_sha256, payload_sha256, write_atomic
from model.data.errors import InputError

ROLLOUTS = "rollouts.parquet"
MANIFEST = "manifest.json"
REPORT = "report.html"
SCHEMA_VERSION = 1
_GROUP_QUERIES = 256
_WRITER = {"version": "2.6", "compression": "zstd", "compression_level": 3, "data_page_version": "1.0"}

Outcome = Literal["right", "wrong", "malformed", "failed", "continued"]
UNJUDGED = ("failed", "continued")
"""Outcomes that say nothing of an answer."""
_ANSWER = pa.struct(
    [
        pa.field("text", pa.string(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("failure", pa.string()),
    ]
)
_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("accuracy", pa.float64()),
        pa.field("answers", pa.list_(_ANSWER), nullable=False),
    ]
)


@dataclass(frozen=True)
class Answer:
    """One sampled answer.

    Attributes:
        text: as sampled; of a continuation, with the beginning that it was given.
        tokens: sampled ones, the end of turn included.
        finish_reason: ``stop``, or ``length`` for an answer cut at the limit.
        score: of the row's scorer, in [0, 1].
        outcome: ``right``; ``wrong``; ``malformed`` (cut, not in the format that the row asks for, or unreadable to
            its scorer); ``failed`` (the scorer gave nothing); ``continued`` (a continuation without the image, which
            nothing judges).
        failure: why the scorer gave nothing.
    """

    text: str
    tokens: int
    finish_reason: str
    score: float
    outcome: Outcome
    failure: str | None = None


@dataclass(frozen=True)
class QueryRollouts:
    """The answers to one query; ``accuracy`` is the share of right ones among those judged, None where none was."""

    id: str
    task: str
    answers: tuple[Answer, ...]

    @property
    def accuracy(self) -> float | None:
        judged = sum(answer.outcome not in UNJUDGED for answer in self.answers)
        return self.count("right") / judged if judged else None

    def count(self, outcome: Outcome) -> int:
        """Answers with this outcome."""
        return sum(answer.outcome == outcome for answer in self.answers)


def write_rollouts(directory: Path, queries: Iterable[QueryRollouts], extra_manifest: Mapping[str, Any]) -> None:
    """Write a directory that appears only when it is complete; the same queries give the same bytes.

    Args:
        directory: must not exist, or be empty.
        queries: consumed once, a row group at a time.
        extra_manifest: how the answers were sampled.

    Raises:
        InputError: ``directory`` holds something already.
    """
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"{directory}: exists already and is not empty")
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    path, written = partial / ROLLOUTS, 0
    with pq.ParquetWriter(path, _SCHEMA, **_WRITER) as writer:
        for group in _groups(queries):
            records = [
                {"id": q.id, "task": q.task, "accuracy": q.accuracy, "answers": [asdict(a) for a in q.answers]}
                for q in group
            ]
            writer.write_table(pa.Table.from_pylist(records, schema=_SCHEMA), row_group_size=len(group))
            written += len(group)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "queries": written,
        "file": {"file": ROLLOUTS, "bytes": path.stat().st_size, "sha256": file_sha256(path)},
        "payload_sha256": payload_sha256(partial),
    }
    write_atomic(partial / MANIFEST, json.dumps(manifest | dict(extra_manifest), indent=2, sort_keys=True).encode())
    if directory.exists():
        directory.rmdir()
    partial.rename(directory)


def read_rollouts(directory: Path) -> Iterator[QueryRollouts]:
    """The queries in the order of writing; one row group is in memory at a time.

    Raises:
        InputError: the directory holds no rollouts, or broken ones; names the file.
    """
    path = directory / ROLLOUTS
    if not path.is_file():
        raise InputError(f"{path}: no such file; rollouts are what build_preferences writes")
    try:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(_SCHEMA):
                raise InputError(f"{path}: its columns are not those of rollouts")
            for group in range(file.num_row_groups):
                for record in file.read_row_group(group).to_pylist():
                    answers = tuple(Answer(**answer) for answer in record["answers"])
                    yield QueryRollouts(record["id"], record["task"], answers)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:200]})") from error


def _groups(queries: Iterable[QueryRollouts]) -> Iterator[list[QueryRollouts]]:
    group: list[QueryRollouts] = []
    for query in queries:
        group.append(query)
        if len(group) == _GROUP_QUERIES:
            yield group
            group = []
    if group:
        yield group
