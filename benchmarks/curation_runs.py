"""One way of curating, in a process of its own: ``python -m benchmarks.curation_runs WAY CORPUS OUTPUT``.

A process of its own, because Daft chooses its runner once, and because peak memory belongs to a process. Prints
one line of JSON: seconds (imports, the start of a cluster and the first touch of the models not counted), how many rows
were kept, their ids, and the peak resident memory of this process and its largest child.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from components.curate.model_sections import Languages
from components.curate.recipe import (
    Decode,
    Licences,
    NearDuplicates,
    NearDuplicateTexts,
    Operator,
    Schema,
    Size,
)

WORKERS = 2
LICENCES = ("CC0-1.0",)
IMAGES: tuple[Operator, ...] = (Schema(), Decode(), Size(), NearDuplicates())
TEXTS: tuple[Operator, ...] = (
    Schema(),
    Decode(),
    Licences(allowed=LICENCES),
    Languages(),
    NearDuplicateTexts(ngram=3, bands=32, rows_per_band=4),
)
WAYS = ("images", "pil_pool", "texts", "datatrove")


def prepared(way: str) -> Callable[[Path, Path], list[str]]:
    """A function of corpus and output directory that returns the ids of the rows kept; everything is imported."""
    if way == "pil_pool":
        from benchmarks.peers import pil_pool

        return lambda corpus, output: pil_pool.curate(corpus, output, WORKERS)
    if way == "datatrove":
        from benchmarks.peers import datatrove_text
        from components.curate.language import known_languages

        known_languages()
        _, _, licences, languages, near = TEXTS
        return lambda corpus, output: datatrove_text.curate(corpus, output, WORKERS, languages, licences.allowed, near)
    return _ours(IMAGES if way == "images" else TEXTS)


def _ours(recipe: tuple[Operator, ...]) -> Callable[[Path, Path], list[str]]:
    from components.context import StepContext
    from components.curate.config import CurateConfig
    from components.curate.daft_runner import choose_runner
    from components.curate.language import known_languages
    from components.curate.step import run
    from model.data.shards import open_dataset, write_dataset

    os.environ["FOVEA_CURATE_WORKERS"] = str(WORKERS)
    choose_runner()
    known_languages()

    def curate(corpus: Path, output: Path) -> list[str]:
        write_dataset(output / "heldout", [])
        names = {name: output / name for name in ("transcriptions", "questions")}
        context = StepContext(state_dir=output / "state")
        run(CurateConfig(recipe=recipe), corpus=corpus, heldout=output / "heldout", **names, context=context)
        return sorted(row["id"] for row in open_dataset(names["questions"]).rows())

    return curate


def main() -> None:
    """Run one way and print what was measured."""
    way, corpus, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    curate = prepared(way)
    start = time.monotonic()
    kept = curate(corpus, output)
    seconds = time.monotonic() - start
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    print(json.dumps({"seconds": seconds, "kept": kept, "peak_mib": round(peak, 1)}))


if __name__ == "__main__":
    main()
