"""How training goes, from ``training.jsonl`` of a pipeline run and files like it, which may be half-written."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPARK_STEPS = 60
"""Steps that the curve of the loss shows."""
FIGURES = (
    *("reward", "accuracy", "margin", "length", "entropy", "clipped_low", "clipped_high"),
    *("divergence_compressed", "divergence_full", "agreement", "compress_share"),
)
"""What some stages say of a step beside its loss, in the order of showing; their READMEs say what each is."""
_PACE_STEPS = 20
"""Steps over which speed, waiting and padding are averaged."""


@dataclass(frozen=True)
class Training:
    """How one training stage goes, or went. Shares are in [0, 1]; what was not measured is None.

    Attributes:
        stage: its name; a step may have several, this is the newest.
        step, steps: optimiser steps done, and all.
        loss, grad_norm, learning_rate: of the last step.
        losses: of the last ``SPARK_STEPS`` steps.
        tokens_per_second, mfu, data_wait_share, padding_share: over the last steps.
        memory_bytes: peak of one process.
        figures: of the last ``SPARK_STEPS`` steps, those of ``FIGURES`` that the stage records.
        seconds_left: at the pace of the last steps.
        updated: seconds since the epoch.
    """

    stage: str
    step: int
    steps: int
    loss: float | None
    grad_norm: float | None
    learning_rate: float | None
    losses: list[float | None]
    tokens_per_second: float | None
    mfu: float | None
    memory_bytes: int | None
    data_wait_share: float | None
    padding_share: float | None
    figures: dict[str, list[float | None]]
    seconds_left: float | None
    updated: float


def read_training(path: Path) -> dict[str, Training]:
    """The newest training stage of every step that has one."""
    records: dict[str, list[dict[str, Any]]] = {}
    for line in read_lines(path):
        task, stage, step = line.get("task"), line.get("stage"), line.get("step")
        if not isinstance(task, str) or not isinstance(stage, str) or not isinstance(step, int):
            continue
        kept = records.setdefault(task, [])
        # A step that stands there again was done again after a kill: it and what lay beyond it do not count any more.
        while kept and (kept[-1]["stage"] != stage or kept[-1]["step"] >= step):
            kept.pop()
        kept.append(line)
    return {task: _training(kept) for task, kept in records.items()}


def _training(records: list[dict[str, Any]]) -> Training:
    last, pace = records[-1], records[-_PACE_STEPS:]
    seconds = _total(pace, "seconds")
    steps = int(_number(last, "steps") or 0)
    left = None if seconds is None else max(steps - last["step"], 0) * seconds / len(pace)
    memory = _number(last, "memory_bytes")
    return Training(
        stage=last["stage"],
        step=last["step"],
        steps=steps,
        loss=_number(last, "loss"),
        grad_norm=_number(last, "grad_norm"),
        learning_rate=_number(last, "learning_rate"),
        losses=[_number(record, "loss") for record in records[-SPARK_STEPS:]],
        tokens_per_second=_ratio(_total(pace, "tokens"), seconds),
        mfu=_weighted(pace, "mfu"),
        memory_bytes=None if memory is None else int(memory),
        data_wait_share=_ratio(_total(pace, "data_wait_seconds"), seconds),
        padding_share=_weighted(pace, "padding_share"),
        figures=_figures(records[-SPARK_STEPS:]),
        seconds_left=left,
        updated=_number(last, "time") or 0.0,
    )


def _figures(records: Sequence[dict[str, Any]]) -> dict[str, list[float | None]]:
    found = {name: [_number(record, name) for record in records] for name in FIGURES}
    return {name: values for name, values in found.items() if any(value is not None for value in values)}


def _number(record: dict[str, Any], key: str) -> float | None:
    value = record.get(key)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if usable else None


def _total(records: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [_number(record, key) for record in records]
    return None if None in values else sum(values)


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _weighted(records: Sequence[dict[str, Any]], key: str) -> float | None:
    """Mean over time of a share."""
    pairs = [(_number(record, key), _number(record, "seconds")) for record in records]
    known = [(value, seconds) for value, seconds in pairs if value is not None and seconds]
    return _ratio(sum(v * s for v, s in known), sum(s for _, s in known)) if known else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file; a line that is half there is none."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return []
    return [found for line in text.splitlines() if isinstance(found := _parsed(line), dict)]


def read_object(path: Path) -> dict[str, Any] | None:
    """The object of a JSON file; None where there is none."""
    try:
        found = _parsed(path.read_text(errors="replace"))
    except OSError:
        return None
    return found if isinstance(found, dict) else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
