"""Rows per second of curate on two cores: against a process pool with PIL, and against datatrove on texts.

    python -m benchmarks.curation [--quick] [--json] [--write]

Images: schema, decoding, bounds, near-duplicates by hash and pixels; the pool does the same, and must keep the same
rows. Texts: licence, language, near-duplicates by MinHash; datatrove must keep a row of the same groups of duplicates.
Ways take turns, each in a process of its own. The step's time holds what a pool does not do: it verifies the input,
keeps what it found for a killed run to continue, and writes rejects and manifest. The figure is images; the details
have texts, Ray, and peak memory against the size of the input. ``ratio`` is our speed over the pool's.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.curation_corpus import (
    digit_canvases,
    documents,
    image_row,
    photographs,
    rendered_words,
    text_row,
)
from benchmarks.curation_plants import reencoded, resized, typo
from benchmarks.harness import REPOSITORY, arguments, median, report, result
from model.data.schema import Row
from model.data.shards import write_dataset

AIM = 1.0
SHARDS = 2
EVERY = 10  # one row in ten has a duplicate
GERMAN = "Das Foto zeigt einen alten Traktor, der am Abend neben der Brücke steht und auf den Regen wartet. "


@dataclass(frozen=True)
class Scale:
    """How much is measured: rows of pictures and texts, rounds, and how often the pictures repeat for memory."""

    pictures: int
    texts: int
    rounds: int
    repeats: int


QUICK, FULL = Scale(600, 1500, 1, 4), Scale(1150, 6000, 5, 16)


def picture_rows(count: int) -> list[Row]:
    """Photographs, and as many again half digits, half words; one in ten twice: re-encoded or resized."""
    half = count // 2
    groups = {
        "photograph": photographs(half),
        "digits": digit_canvases(half // 2, seed=1),
        "words": rendered_words(half // 2, seed=2),
    }
    rows = []
    for task, images in groups.items():
        for number, image in enumerate(images):
            rows.append(image_row(f"{task}-{number}", image, task))
            if number % EVERY == 0 and task == "photograph":
                plant = resized if number % (2 * EVERY) else reencoded
                rows.append(image_row(f"{task}-{number}~copy", plant(image), task, quality=60))
    return rows


def document_rows(count: int) -> list[Row]:
    """Texts, one in ten twice with another word, one in ten under another licence, one in ten in German."""
    import numpy as np

    rng = np.random.default_rng(0)
    rows = []
    for number, text in enumerate(documents(count, seed=3)):
        rows.append(text_row(f"text-{number}", text if number % EVERY != 7 else GERMAN * 8 + str(number)))
        if number % EVERY == 3:
            rows[-1]["license"] = "proprietary"
        if number % EVERY == 0:
            rows.append(text_row(f"text-{number}~copy", typo(text, rng)))
    return rows


def measure(way: str, corpus: Path, runner: str = "native") -> dict[str, Any]:
    """Run one way in a process of its own; ``seconds``, ``kept`` and ``peak_mib``."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "benchmarks.curation_runs", way, str(corpus), str(Path(directory) / "out")]
        threads = {"OMP_NUM_THREADS": "1", "FOVEA_CURATE_RUNNER": runner}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=os.environ | threads, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{way} on {runner} failed:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def groups(ids: list[str]) -> list[str]:
    """Which groups of duplicates have rows among ``ids``, and how many."""
    return sorted(row_id.removesuffix("~copy") for row_id in ids)


def main(argv: list[str] | None = None) -> None:
    """Measure and report."""
    options = arguments(__doc__.splitlines()[0], argv)
    scale = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as directory:
        corpora = {name: Path(directory) / name for name in ("pictures", "large", "texts")}
        rows = picture_rows(scale.pictures)
        write_dataset(corpora["pictures"], rows, shards=SHARDS)
        # The same pictures under other questions: so many times the bytes, and as many duplicates per question.
        repeated = chain.from_iterable(map(lambda row, n=n: _again(row, n), rows) for n in range(scale.repeats))
        write_dataset(corpora["large"], repeated, shards=SHARDS)
        texts = document_rows(scale.texts)
        write_dataset(corpora["texts"], texts, shards=SHARDS)
        taken = _rounds(corpora, scale.rounds)
        ray = measure("images", corpora["pictures"], "ray")
        large = measure("images", corpora["large"])
        megabytes = [sum(file.stat().st_size for file in corpora[name].iterdir()) / 1e6 for name in corpora]
    native = taken["images"]
    assert native[0]["kept"] == taken["pil_pool"][0]["kept"] == ray["kept"], "the pool or Ray keeps other rows"
    assert groups(taken["texts"][0]["kept"]) == groups(taken["datatrove"][0]["kept"]), "datatrove keeps other groups"
    speeds = {
        way: [len(texts if way in ("texts", "datatrove") else rows) / one["seconds"] for one in ones]
        for way, ones in taken.items()
    }
    ours, pool = speeds["images"], speeds["pil_pool"]
    details = {
        "rows": len(rows),
        "kept": len(native[0]["kept"]),
        "ray_rows_per_second": round(len(rows) / ray["seconds"], 1),
        "texts": len(texts),
        "texts_kept": len(taken["texts"][0]["kept"]),
        "texts_ours": [round(value, 1) for value in speeds["texts"]],
        "texts_datatrove": [round(value, 1) for value in speeds["datatrove"]],
        "texts_ratio": round(median(speeds["texts"]) / median(speeds["datatrove"]), 3),
        "input_mb": [round(value, 1) for value in megabytes[:2]],
        "peak_mib": [native[0]["peak_mib"], large["peak_mib"]],
        "peak_mib_pil_pool": taken["pil_pool"][0]["peak_mib"],
    }
    measured = result("curation", "rows/s", ours, pool, ratio=median(ours) / median(pool), aim=AIM, details=details)
    print(json.dumps(details, indent=2))
    report(measured, options)


def _again(row: Row, number: int) -> Row:
    turns = [{**turn, "content": turn["content"].replace("this", f"this ({number})")} for turn in row["messages"]]
    return row | {"id": f"{number}/{row['id']}", "messages": turns}


def _rounds(corpora: dict[str, Path], rounds: int) -> dict[str, list[dict[str, Any]]]:
    ways = {"images": "pictures", "pil_pool": "pictures", "texts": "texts", "datatrove": "texts"}
    taken: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for number in range(rounds):
        order = list(ways) if number % 2 == 0 else list(reversed(ways))
        for way in order:
            taken[way].append(measure(way, corpora[ways[way]]))
            print(f"round {number + 1}: {way} {taken[way][-1]['seconds']:.2f} s", flush=True)
    return taken


if __name__ == "__main__":
    main()
