"""``out/demo/summary.json``: what a demo found, for machines. Its fields are documented here and in docs/demo.md."""

import json
from pathlib import Path
from typing import Literal

from model.config import Section
from model.data.artifact import write_atomic

SCHEMA_VERSION: Literal[1] = 1


class HeldoutScore(Section):
    """Score of one task family on held-out rows, all in [0, 1] but ``n``."""

    score: float
    """Mean of the row's own scorer (a box counts at IoU 0.5)."""
    low: float
    """Lower end of the 95 % bootstrap interval."""
    high: float
    """Upper end of the 95 % bootstrap interval."""
    n: int
    """Rows."""
    constant: float
    """Score of the best constant answer on the same rows."""
    swapped: float | None
    """The model's score with images swapped between rows; null where it was not measured."""


class StageSummary(Section):
    """One step of the line."""

    name: str
    seconds: float
    """Wall time of the run that produced the output; a cached step reports the run it was taken from."""
    tokens: int | None
    """Tokens trained on; null for a step that trains nothing."""
    loss: float | None
    """Last logged training loss; null for a step that trains nothing."""
    heldout: dict[str, HeldoutScore]
    """Per task family; empty for a step that scores nothing."""


class Answer(Section):
    """One held-out image, asked through the gateway."""

    question: str
    answer: str
    truth: str
    endpoint: str
    """Base URL of the gateway that answered."""


class RegistryEntry(Section):
    """The version that was registered or found in the model registry."""

    name: str
    version: int
    alias: str
    """``champion`` if it holds that alias, else ``challenger``."""


class DvcLock(Section):
    """The untracked dvc.lock of this run."""

    lock_sha256: str | None
    """Null where dvc.lock does not describe this run: another profile or place than params.yaml and dvc.yaml name."""


class Summary(Section):
    """Everything a demo found."""

    schema_version: Literal[1] = SCHEMA_VERSION
    stages: list[StageSummary]
    """In the order of the pipeline, one for each of its steps."""
    answer: Answer
    registry: RegistryEntry
    dvc: DvcLock
    wall_seconds: float
    """From the start of the command to its summary."""
    cached_steps: list[str]
    """Names of the steps that were taken from the store."""

    def write(self, path: Path) -> None:
        """Write as indented JSON, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(self.model_dump(mode="json"), indent=2) + "\n").encode())
