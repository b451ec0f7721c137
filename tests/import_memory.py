"""Peak memory of an import, measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

_SCRIPT = """
import json, resource, sys
from pathlib import Path
from components.collect.config import CollectConfig
from components.collect.step import run
from components.context import StepContext
from model.data import shards

source, out, group_bytes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
shards.GROUP_BYTES = group_bytes
outputs = {name: out / name for name in ("corpus", "heldout", "tokenizer")}
result = run(CollectConfig(source={"path": source}), **outputs, context=StepContext(state_dir=out / "state"))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"peak_mb": peak / 1024, "rows": result.numbers["corpus_rows"] + result.numbers["heldout_rows"]}))
"""


def import_peak(source: Path, out: Path, group_bytes: int = 32 << 20) -> dict[str, float]:
    """Import ``source``; returns its peak resident memory in MB and the number of rows.

    Args:
        group_bytes: size of a row group, which is what the writer holds; 32 MiB in earnest.
    """
    command = [sys.executable, "-c", _SCRIPT, str(source), str(out), str(group_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def write_noise(directory: Path, megabytes: int, side: int = 256) -> Path:
    """A folder of that many MB of images that do not compress, and the CSV of questions about them."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(0)
    count = megabytes * 10**6 // (3 * side * side)
    lines = ["image,question,answer"]
    for index in range(count):
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(directory / f"{index}.bmp")
        lines.append(f"{index}.bmp,Which number?,{index}")
    (directory / "questions.csv").write_text("\n".join(lines) + "\n")
    return directory
