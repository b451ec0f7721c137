"""What people write without a framework: a process pool with PIL. The same checks as our recipe of the benchmark.

Decode every image, bound its sides, hash it (SHA-256 and the 64-bit DCT hash of Zauner 2010); in the parent find pairs
of rows with the same messages whose hashes are at most 4 bits apart, and confirm them by pixels: the largest mean
difference in a 4 x 4 block of two grey pictures of at most 128 pixels a side is at most 0.1. The first row is kept.
"""

import hashlib
import io
import json
import multiprocessing
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps
from scipy.fft import dct

MIN_SIDE, MAX_SIDE = 28, 16_384
MAX_PIXELS = 40_000_000
DISTANCE, PIXELS = 4, 0.1
CHUNK = 16

Checked = tuple[str, int, bytes, tuple[int, int]] | None


def check(encoded: bytes) -> Checked:
    """(SHA-256, hash, grey picture, its size as height and width), or None for an image that is no good."""
    try:
        image = Image.open(io.BytesIO(encoded))
        if image.width * image.height > MAX_PIXELS or min(image.size) < MIN_SIDE or max(image.size) > MAX_SIDE:
            return None
        image = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return None
    grey = image.convert("L")
    reduced = np.asarray(grey.resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = np.round(dct(dct(reduced, axis=0), axis=1)[:8, :8] / 4, 3)
    bits = int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")
    grey.thumbnail((128, 128), Image.Resampling.BOX, reducing_gap=None)
    return hashlib.sha256(encoded).hexdigest(), bits, grey.tobytes(), (grey.height, grey.width)


def alike(first: Checked, second: Checked) -> bool:
    """Whether two checked images look the same."""
    assert first and second
    if (first[1] ^ second[1]).bit_count() > DISTANCE:
        return False
    one, other = (np.frombuffer(image[2], np.uint8).reshape(image[3]) for image in (first, second))
    if one.shape != other.shape:
        small, large = sorted((one, other), key=np.size)
        scales = [a / b for a, b in zip(large.shape, small.shape, strict=True)]
        if max(scales) > 1.03 * min(scales):
            return False
        one, other = small, np.asarray(Image.fromarray(large).resize(small.shape[::-1], Image.Resampling.BOX))
    height, width = (side - side % 4 for side in one.shape)
    gap = np.abs(one.astype(np.int16) - other)[:height, :width]
    return float(gap.reshape(height // 4, 4, width // 4, 4).mean((1, 3)).max()) / 255 <= PIXELS


def _rows(corpus: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    for path in sorted(corpus.glob("shard-*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(256):
            for row in batch.to_pylist():
                yield row, row["media"][0]["bytes"]


def curate(corpus: Path, output: Path, workers: int) -> list[str]:
    """Write the rows that are kept as one Parquet file; returns their ids."""
    rows: list[tuple[str, str]] = []

    def encoded() -> Iterator[bytes]:
        for row, image in _rows(corpus):
            rows.append((row["id"], json.dumps(row["messages"])))
            yield image

    with multiprocessing.get_context("fork").Pool(workers) as pool:
        images = list(pool.imap(check, encoded(), CHUNK))
    groups: dict[str, list[int]] = defaultdict(list)
    keep = set()
    for place, (_, messages) in enumerate(rows):
        if images[place] is None:
            continue
        kept = groups[messages]
        # One vector of distances instead of a loop over pairs.
        hashes = np.array([images[other][1] for other in kept], np.uint64)
        near = np.flatnonzero(np.bitwise_count(hashes ^ np.uint64(images[place][1])) <= DISTANCE)
        if any(alike(images[kept[index]], images[place]) for index in near):
            continue
        kept.append(place)
        keep.add(rows[place][0])
    _write(corpus, output, keep)
    return sorted(keep)


def _write(corpus: Path, output: Path, keep: set[str]) -> None:
    output.mkdir(parents=True)
    writer = None
    for path in sorted(corpus.glob("shard-*.parquet")):
        file = pq.ParquetFile(path)
        writer = writer or pq.ParquetWriter(output / "kept.parquet", file.schema_arrow, compression="zstd")
        for batch in file.iter_batches(256):
            chosen = pa.array([row_id in keep for row_id in batch.column("id").to_pylist()])
            writer.write_batch(batch.filter(chosen))
    if writer:
        writer.close()
