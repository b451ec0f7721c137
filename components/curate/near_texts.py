"""``near_duplicate_texts``: nearly the same words about the same images. MinHash nominates, Jaccard decides.

Source: Broder, "On the resemblance and containment of documents" (1997); banding as in Leskovec, Rajaraman, Ullman,
"Mining of Massive Datasets", section 3.4.
"""

import json
from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any

import daft
import numpy as np
from daft import DataType, Expression, Series, col, lit

from components.curate.images import pixel_difference, reduced_grey
from components.curate.recipe import NearDuplicates, NearDuplicateTexts
from components.curate.rows import Rows, Verdicts
from components.curate.text_operators import clip_bounds_of, spoken


def text_sketches(section: NearDuplicateTexts) -> Expression:
    """Facts ``said``, the words of a row in lower case, ``minhash``, their signature, and ``clips``, the bounds of its
    videos."""
    said = _said(col("messages"), col("reason"))
    hashes = section.bands * section.rows_per_band
    sketch = daft.functions.minhash(said, num_hashes=hashes, ngram_size=section.ngram)
    nothing = lit(None).cast(DataType.string())
    sketch = sketch.cast(DataType.list(DataType.uint32()))
    return daft.functions.to_struct(reason=nothing, said=said, minhash=sketch, clips=_clips(col("media")))


def near_duplicate_texts(section: NearDuplicateTexts, rows: Rows) -> Verdicts:
    """Rows whose words are nearly those of an earlier sound row about the same images."""
    said, sketches = rows.fact("said"), rows.fact("minhash")
    media = _media_keys(rows)
    pairs: dict[int, list[int]] = {}
    kept: dict[Hashable, list[int]] = defaultdict(list)
    shingles = lru_cache(maxsize=4096)(lambda place: _shingles(said[place], section.ngram))
    sha256 = rows.fact("sha256")
    alike: dict[int, int] = {}
    for place in rows.sound():
        buckets = [(media[place], band, key) for band, key in enumerate(_bands(sketches[place], section.rows_per_band))]
        candidates = sorted({earlier for bucket in buckets for earlier in kept[bucket]})
        near = [c for c in candidates if jaccard(shingles(c), shingles(place)) >= section.jaccard]
        same = next((earlier for earlier in near if sha256[earlier] == sha256[place]), None)
        if same is not None:
            alike[place] = same
            continue
        if near:
            pairs[place] = near
        for bucket in buckets:
            kept[bucket].append(place)
    alike |= _confirmed(pairs, alike, rows)
    ids = rows.fact("id")
    return Verdicts({place: f"of {ids[earlier]}" for place, earlier in sorted(alike.items())})


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Share of common members: |A and B| / |A or B|; 1 for two empty sets."""
    union = len(first | second)
    return len(first & second) / union if union else 1.0


def _confirmed(pairs: dict[int, list[int]], rejected: dict[int, int], rows: Rows) -> dict[int, int]:
    """Of rows whose images hash alike but have other bytes: those whose pixels agree, with the earlier row."""
    grey = rows.images({place for later, earlier in pairs.items() for place in (later, *earlier)}, reduced_grey)
    limit = NearDuplicates().pixel_difference
    found: dict[int, int] = {}
    for later, candidates in sorted(pairs.items()):
        for earlier in candidates:
            if earlier in rejected or earlier in found:
                continue
            shown = [pair for pair in zip(grey[earlier], grey[later], strict=True) if pair[0] is not None]
            if all(pixel_difference(*pair) <= limit for pair in shown):
                found[later] = earlier
                break
    return found


def _media_keys(rows: Rows) -> list[tuple[str, ...]]:
    """By place, what the media of rows must share: the perceptual hash of an image, the bytes and clip of a video."""
    return [
        (*(phash or sha256 for phash, sha256 in zip(phashes or (), hashes or (), strict=True)), clips)
        for phashes, hashes, clips in zip(rows.fact("phash"), rows.fact("sha256"), rows.fact("clips"), strict=True)
    ]


def _bands(sketch: Sequence[int], size: int) -> list[bytes]:
    values = np.asarray(sketch, np.uint32).reshape(-1, size)
    return [band.tobytes() for band in values]


def _shingles(said: str, size: int) -> frozenset[str]:
    words = said.split()
    return frozenset(" ".join(words[start : start + size]) for start in range(max(1, len(words) - size + 1)))


@daft.func.batch(return_dtype=DataType.string(), use_process=False)
def _said(messages: Series, reason: Series) -> list[Any]:
    return [
        " ".join(spoken(turns).casefold().split()) if earlier is None else None
        for turns, earlier in zip(messages.to_pylist(), reason.to_pylist(), strict=True)
    ]


@daft.func.batch(return_dtype=DataType.string(), use_process=False)
def _clips(media: Series) -> list[str]:
    return [json.dumps(clip_bounds_of(shown or ())) for shown in media.to_pylist()]
