"""Raw answers on disk: ``predictions.parquet``, written before anything is scored. Imports no torch.

One row per held-out row, in its order: ``id``, ``task``, ``prediction``, ``swapped_prediction`` (null where there were
no other images to swap with). The file says itself what made it (``Origin``), so that answers can be used again
for exactly the same question and for no other.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.data.artifact import payload_sha256, write_atomic
from model.data.errors import InputError
from model.data.schema import Row

PREDICTIONS = "predictions.parquet"
SCORES = "scores.json"
ROUTING = "routing.json"
_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("prediction", pa.string(), nullable=False),
        pa.field("swapped_prediction", pa.string()),
    ]
)
_ORIGIN_KEY = b"fovea.origin"
_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Origin:
    """What answers depend on: payload hashes of model and rows, and how they were generated (greedily)."""

    model_sha256: str
    heldout_sha256: str
    max_new_tokens: int
    precision: str


@dataclass(frozen=True)
class Predictions:
    """Raw answers in the order of the held-out rows."""

    origin: Origin
    ids: list[str]
    answers: list[str]
    swapped: list[str | None]


def origin_of(model: Path, heldout: Path, max_new_tokens: int, precision: str) -> Origin:
    """The origin of the answers of a model directory to a dataset directory.

    Raises:
        InputError: there is no such directory; names it.
    """
    for directory, kind in ((model, "model"), (heldout, "dataset")):
        if not directory.is_dir() or not any(directory.iterdir()):
            raise InputError(f"{directory}: no such {kind} directory, or an empty one")
    return Origin(payload_sha256(model), payload_sha256(heldout), max_new_tokens, precision)


def write_predictions(
    directory: Path, rows: Sequence[Row], answers: Sequence[str], swapped: Sequence[str | None], origin: Origin
) -> None:
    """Write ``predictions.parquet``; the same arguments give the same bytes."""
    table = pa.table(
        {
            "id": [row["id"] for row in rows],
            "task": [row["task"] for row in rows],
            "prediction": list(answers),
            "swapped_prediction": list(swapped),
        },
        schema=_SCHEMA.with_metadata({_ORIGIN_KEY: json.dumps(asdict(origin), sort_keys=True)}),
    )
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", compression_level=3)
    write_atomic(directory / PREDICTIONS, buffer.getvalue().to_pybytes())


def write_routing(directory: Path, routed: Sequence[tuple[int, int]], examples: Sequence[dict[str, Any]] = ()) -> None:
    """Write ``routing.json``; nothing where the network does not route.

    Args:
        directory: of the evaluation.
        routed: (compressed tiles, tiles) of every row.
        examples: of a few rows every tile, as ``components.routing_examples`` gives them.
    """
    if routed:
        columns = {"compressed": [compressed for compressed, _ in routed], "tiles": [tiles for _, tiles in routed]}
        document = columns | {"examples": list(examples)}
        write_atomic(directory / ROUTING, json.dumps(document, sort_keys=True).encode() + b"\n")


def read_routing(directory: Path, rows: int) -> list[tuple[int, int]] | None:
    """What ``write_routing`` wrote for ``rows`` rows; None where there is nothing.

    Raises:
        InputError: the file is of another kind, or of another number of rows; names it.
    """
    path = directory / ROUTING
    if not path.is_file():
        return None
    try:
        columns = json.loads(path.read_bytes())
        routed = [(int(c), int(n)) for c, n in zip(columns["compressed"], columns["tiles"], strict=True)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a file of routed tiles ({' '.join(str(error).split())[:200]})") from error
    if len(routed) != rows:
        raise InputError(f"{path}: has {len(routed)} rows; there are {rows}")
    return routed


def read_predictions(directory: Path) -> Predictions:
    """Read what ``write_predictions`` wrote.

    Raises:
        InputError: the file is missing, too large, corrupt, or of another kind; names it.
    """
    path = directory / PREDICTIONS
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path}: larger than {_MAX_BYTES} bytes")
    try:
        table = pq.read_table(path, partitioning=None)
        origin = Origin(**json.loads((table.schema.metadata or {})[_ORIGIN_KEY]))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a readable file of raw predictions ({reason})") from error
    if not table.schema.equals(_SCHEMA):
        raise InputError(f"{path}: its columns are not those of raw predictions")
    columns = table.to_pydict()
    return Predictions(origin, columns["id"], columns["prediction"], columns["swapped_prediction"])


def check_same_rows(predictions: Predictions, rows: Sequence[Row], directory: Path) -> None:
    """Make sure that ``predictions`` answer ``rows``, one by one.

    Raises:
        InputError: they answer other rows.
    """
    if predictions.ids != [row["id"] for row in rows]:
        raise InputError(f"{directory / PREDICTIONS}: its rows are not those of the held-out dataset")
