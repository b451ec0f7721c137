"""Progress and bookkeeping of a pipeline run, as files: kfp.local pipes its children's output, so bars cannot."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

TRAINING_FILE = "training.jsonl"
_MIN_SECONDS = 0.2


class ProgressFile:
    """Writes ``{step, label, done, total, detail, started, updated}`` to ``progress.json`` of a pipeline run.

    Times are seconds since the epoch; ``started`` is when ``label`` began. What is reported while the label that is the
    step's own name is not through is a part of its work (a rollout of an iteration): it is written as ``detail`` in
    words, else empty. Called often, it writes at most five times a second, and always at the end of a label. Outside a
    pipeline run it does nothing.
    """

    def __init__(self, run_dir: Path | None, step: str) -> None:
        self._path = run_dir / "progress.json" if run_dir else None
        self._step = step
        self._label: str | None = None
        self._started = self._written = 0.0
        self._whole = (0, 0)

    def __call__(self, label: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` units of ``label`` are done."""
        if self._path is None:
            return
        now, detail = time.time(), ""
        if label == self._step:
            self._whole = (int(done), int(total))
        elif self._whole[0] < self._whole[1]:
            detail = f"{label} {done}/{total}" if total else label
            label, (done, total) = self._step, self._whole
        if label != self._label:
            self._label, self._started, self._written = label, now, 0.0
        if (detail or done < total) and now - self._written < _MIN_SECONDS:
            return
        self._written = now
        state = {
            "step": self._step,
            "label": label,
            "done": int(done),
            "total": int(total),
            "detail": detail,
            "started": self._started,
            "updated": now,
        }
        temporary = self._path.with_name(f".progress.{os.getpid()}.tmp")
        # What a bar shows must never fail the step behind it: a full disk is reported by what the step itself writes.
        with suppress(OSError):
            temporary.write_text(json.dumps(state))
            temporary.replace(self._path)


class MetricsFile:
    """Appends records of optimiser steps to ``training.jsonl`` of a pipeline run: one line each.

    A record gets the pipeline's ``task`` and the ``time`` in seconds since the epoch. After a resume the same step may
    stand there twice; the last line counts. Past ``limit_bytes`` the older half goes. One process writes. Outside a
    pipeline run nothing is kept.
    """

    def __init__(self, run_dir: Path | None, task: str, limit_bytes: int = 16 << 20) -> None:
        self._path = run_dir / TRAINING_FILE if run_dir else None
        self._task = task
        self._limit = limit_bytes

    def __call__(self, record: dict[str, Any]) -> None:
        """Keep one record."""
        if self._path is None:
            return
        # As with progress: what is only shown must never fail the step.
        with suppress(OSError):
            append_line(self._path, {"task": self._task, "time": time.time(), **record})
            if self._path.stat().st_size > self._limit:
                self._forget()

    def _forget(self) -> None:
        lines = self._path.read_bytes().splitlines(keepends=True)
        temporary = self._path.with_name(f".{TRAINING_FILE}.{os.getpid()}.tmp")
        temporary.write_bytes(b"".join(lines[len(lines) // 2 :]))
        temporary.replace(self._path)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line in one write, so that lines of several processes never mix."""
    line = (json.dumps(record, sort_keys=True) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
