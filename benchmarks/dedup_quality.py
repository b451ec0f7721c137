"""Recall and precision of the duplicate operators on planted duplicates.

    python -m benchmarks.dedup_quality [--quick] [--json] [--write]

Pictures (photographs, digit canvases, rendered words): one in four is planted again, encoded at another quality,
resized, or cropped by 5 %. Captions: one in four is planted again, paraphrased by rule. All others are distinct, digit
canvases and captions in little. A planted row that is refused is found, any other that is refused is a false alarm;
where the row it was made of was refused in error, its copy may stay and counts as missed. The figure is F1 over all
pictures, the peer's the same for the perceptual hash alone (64 bits, the same distance, no look at the pixels), as most
tools do. Intervals are Wilson's, at 95 %.
"""

import io
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.curation_corpus import captions, digit_canvases, image_row, photographs, rendered_words, text_row
from benchmarks.curation_plants import CAPTIONS, PICTURES
from benchmarks.harness import arguments, report, result
from components.curate.engine import apply_recipe
from components.curate.images import perceptual_hash
from components.curate.model_sections import SemanticDuplicates
from components.curate.recipe import Decode, NearDuplicates, NearDuplicateTexts, Operator, Schema
from model.data.schema import Row
from model.data.shards import open_dataset, write_dataset

AIM = 1.0
EVERY = 4
Z = 1.959964
OPERATORS: dict[str, Operator] = {
    "near_duplicates": NearDuplicates(),
    "near_duplicates, loose": NearDuplicates(phash_distance=12, pixel_difference=0.4),
    "semantic_duplicates": SemanticDuplicates(),
    "semantic_duplicates, loose": SemanticDuplicates(min_cosine=0.95),
    "near_duplicate_texts": NearDuplicateTexts(),
    "near_duplicate_texts, loose": NearDuplicateTexts(ngram=1, jaccard=0.6),
}


class Rate(NamedTuple):
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(hits: int, trials: int) -> Rate:
    """Wilson's score interval (1927) of a share; 0 to 1 without trials."""
    if not trials:
        return Rate(0.0, 0.0, 1.0)
    share, z2 = hits / trials, Z * Z / trials
    centre = (share + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * (share * (1 - share) / trials + z2 / (4 * trials)) ** 0.5
    return Rate(*(round(min(1.0, max(0.0, value)), 4) for value in (share, centre - half, centre + half)))


def planted_pictures(count: int) -> tuple[list[Row], dict[str, tuple[str, str]]]:
    """Rows of pictures; and by id of a planted row, (how it was made, the id of what it was made of)."""
    kinds = {
        "photograph": photographs(count),
        "digits": digit_canvases(count, seed=5),
        "words": rendered_words(count, seed=6),
    }
    rows, plants = [], {}
    seen: set[bytes] = set()
    for task, images in kinds.items():
        for number, image in enumerate(images):
            if image.tobytes() in seen:
                continue  # chance drew the same canvas twice: that would be a true duplicate
            seen.add(image.tobytes())
            row_id = f"{task}-{number}"
            rows.append(image_row(row_id, image, task))
            if number % EVERY == 0:
                how = list(PICTURES)[number // EVERY % len(PICTURES)]
                plants[f"{row_id}~copy"] = (how, row_id)
                rows.append(image_row(f"{row_id}~copy", PICTURES[how](image), task, quality=60))
    return rows, plants


def planted_captions(count: int) -> tuple[list[Row], dict[str, tuple[str, str]]]:
    """Rows of captions, and the planted ones as ``planted_pictures`` says."""
    rows, plants = [], {}
    for number, caption in enumerate(captions(count, seed=7)):
        row_id = f"caption-{number}"
        rows.append(text_row(row_id, caption))
        if number % EVERY == 0:
            how = list(CAPTIONS)[number // EVERY % len(CAPTIONS)]
            plants[f"{row_id}~copy"] = (how, row_id)
            rows.append(text_row(f"{row_id}~copy", CAPTIONS[how](caption)))
    return rows, plants


def refused(rows: list[Row], operator: Operator) -> set[str]:
    """Ids that the operator refuses."""
    with tempfile.TemporaryDirectory() as directory:
        write_dataset(Path(directory) / "rows", rows)
        dataset = open_dataset(Path(directory) / "rows")
        found = apply_recipe(dataset, (Schema(), Decode(), operator), Path(directory) / "state", workers=2).rows
        return {row_id for row_id, reason in zip(found.fact("id"), found.reasons, strict=True) if reason is not None}


def refused_by_hash(rows: list[Row], distance: int) -> set[str]:
    """Ids whose perceptual hash is near that of an earlier row of the task that is kept: the peer."""
    kept: dict[str, list[int]] = defaultdict(list)
    found = set()
    for row in rows:
        value = perceptual_hash(Image.open(io.BytesIO(row["media"][0]["bytes"])).convert("RGB"))
        others = np.array(kept[row["task"]], np.uint64)
        if len(others) and int(np.bitwise_count(others ^ np.uint64(value)).min()) <= distance:
            found.add(row["id"])
        else:
            kept[row["task"]].append(value)
    return found


def quality(found: set[str], plants: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Recall of every way of planting, recall and precision of all, and F1."""
    ways: dict[str, list[bool]] = defaultdict(list)
    for row_id, (how, _) in plants.items():
        ways[how].append(row_id in found)
    hits = sum(row_id in found for row_id in plants)
    recall, precision = wilson(hits, len(plants)), wilson(hits, len(found))
    total = recall.value + precision.value
    f1 = 2 * recall.value * precision.value / total if total else 0.0
    by_way = {how: wilson(sum(flags), len(flags)) for how, flags in ways.items()}
    return {"recall": recall, "precision": precision, "f1": round(f1, 4), "recall_by_way": by_way}


def main(argv: list[str] | None = None) -> None:
    """Measure and report."""
    options = arguments(__doc__.splitlines()[0], argv)
    pictures, plants = planted_pictures(250 if options.quick else 1150)
    texts, paraphrases = planted_captions(300 if options.quick else 2000)
    details: dict[str, Any] = {"pictures": len(pictures), "captions": len(texts)}
    for name, operator in OPERATORS.items():
        visual = isinstance(operator, NearDuplicates)
        rows, planted = (pictures, plants) if visual else (texts, paraphrases)
        details[name] = operator.model_dump() | quality(refused(rows, operator), planted)
        _print(name, details[name])
    distance = NearDuplicates().phash_distance
    peer = quality(refused_by_hash(pictures, distance), plants)
    details["perceptual hash alone"] = peer
    _print("perceptual hash alone", peer)
    ours = details["near_duplicates"]["f1"]
    ratio = ours / peer["f1"] if peer["f1"] else float("inf")
    report(result("dedup_quality", "F1", [ours], [peer["f1"]], ratio=ratio, aim=AIM, details=details), options)


def _print(name: str, found: dict[str, Any]) -> None:
    ways = ", ".join(f"{how} {rate.value:.2f}" for how, rate in found["recall_by_way"].items())
    recall, precision = (
        f"{rate.value:.3f} ({rate.low:.3f} to {rate.high:.3f})" for rate in (found["recall"], found["precision"])
    )
    print(f"{name}: recall {recall}, precision {precision}; {ways}", flush=True)


if __name__ == "__main__":
    main()
