"""A model directory of any family answers rows: greedily, in parts that survive a kill. Imports torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from components.context import ProgressFunction
from model.data.artifact import write_atomic
from model.data.schema import Row
from model.families.generation import answer_rows
from model.families.interface import Network, Processor, Sample
from model.families.opening import load_network, load_processor

# Batches whose answers are kept together; a kill loses at most this much.
_BATCHES_PER_PART = 4


@dataclass
class Answerer:
    """A loaded model that answers rows and keeps finished parts in ``state_dir``.

    Attributes:
        routed: of a network that routes, (compressed tiles, tiles) of every row that was answered last.
    """

    model: Network
    processor: Processor
    batch_size: int
    max_new_tokens: int
    state_dir: Path
    progress: ProgressFunction
    routed: list[tuple[int, int]] = field(default_factory=list)

    def answer(self, rows: Sequence[Row], label: str) -> list[str]:
        """Answers to ``rows``; parts that an earlier run with the same ``label`` finished are taken from it."""
        part_rows = self.batch_size * _BATCHES_PER_PART
        answers: list[str] = []
        self.routed = []
        for start in range(0, len(rows), part_rows):
            part = rows[start : start + part_rows]
            path = self.state_dir / f"{label.replace(' ', '-')}-{start:08d}.json"
            answers += self._kept(path, part) or self._answer_part(path, part, label, start, len(rows))
            self.progress(label, len(answers), len(rows))
        return answers

    def _answer_part(self, path: Path, part: Sequence[Row], label: str, start: int, total: int) -> list[str]:
        routed: list[tuple[int, int]] = []

        def see(sample: Sample) -> None:
            if "compressed" in sample.media:
                routed.append((int(sample.media["compressed"].sum()), sample.units))

        answers = answer_rows(
            self.model,
            self.processor,
            part,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            progress=lambda _, done, __: self.progress(label, start + done, total),
            on_sample=see,
        )
        record = {"ids": [row["id"] for row in part], "answers": answers, "routed": routed}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(record).encode())
        self.routed += routed
        return answers

    def _kept(self, path: Path, part: Sequence[Row]) -> list[str] | None:
        if not path.is_file():
            return None
        record = json.loads(path.read_bytes())
        if record["ids"] != [row["id"] for row in part]:
            return None
        self.routed += [(compressed, tiles) for compressed, tiles in record["routed"]]
        return record["answers"]


def load_answerer(
    model: Path,
    *,
    precision: Literal["float32", "bfloat16"],
    threads: int,
    batch_size: int,
    max_new_tokens: int,
    state_dir: Path,
    progress: ProgressFunction,
) -> Answerer:
    """Load a model directory for answering, on the first GPU where there is one.

    Raises:
        InputError: the directory is missing, incomplete or broken.
    """
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_network(model, dtype=getattr(torch, precision), device=device)
    return Answerer(loaded, load_processor(model), batch_size, max_new_tokens, state_dir, progress)
