"""Progress and bookkeeping of a pipeline run, as files: kfp.local pipes its children's output, so bars cannot."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_MIN_SECONDS = 0.2


class ProgressFile:
    """Writes ``{step, label, done, total, started, updated}`` to ``progress.json`` of a pipeline run.

    Times are seconds since the epoch; ``started`` is when ``label`` began. Called often, it writes at most five
    times a second, and always at the end of a label. Outside a pipeline run it does nothing.
    """

    def __init__(self, run_dir: Path | None, step: str) -> None:
        self._path = run_dir / "progress.json" if run_dir else None
        self._step = step
        self._label: str | None = None
        self._started = self._written = 0.0

    def __call__(self, label: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` units of ``label`` are done."""
        if self._path is None:
            return
        now = time.time()
        if label != self._label:
            self._label, self._started, self._written = label, now, 0.0
        if done < total and now - self._written < _MIN_SECONDS:
            return
        self._written = now
        state = {
            "step": self._step,
            "label": label,
            "done": int(done),
            "total": int(total),
            "started": self._started,
            "updated": now,
        }
        temporary = self._path.with_name(f".progress.{os.getpid()}.tmp")
        # What a bar shows must never fail the step behind it: a full disk is reported by what the step itself writes.
        with suppress(OSError):
            temporary.write_text(json.dumps(state))
            temporary.replace(self._path)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line in one write, so that lines of several processes never mix."""
    line = (json.dumps(record, sort_keys=True) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
