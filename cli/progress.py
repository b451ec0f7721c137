"""Progress of a pipeline run, drawn by the parent.

kfp.local pipes what its children print, so a bar cannot be drawn where the work is done: the runner writes
``progress.json`` into the run's directory, and a thread of the command line reads it.
"""

import json
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Mode = Literal["bar", "lines", "none"]

_POLL_SECONDS = 0.25
_LINE_SECONDS = 5.0
_SILENT_SECONDS = 2.0
"""Work that takes no longer than this gets no bar: it would only flicker."""


@dataclass(frozen=True)
class Update:
    """One reading of progress.json; times in seconds since the epoch, ``total`` 0 where it is not known, ``detail`` a
    part of the work that is under way."""

    step: str
    label: str
    done: int
    total: int
    detail: str
    started: float
    updated: float

    @property
    def title(self) -> str:
        """Step and label; the step alone where the label says no more."""
        return self.step if self.label == self.step else f"{self.step}: {self.label}"


def read_update(run_dir: Path) -> Update | None:
    """The newest progress of a run, or None while there is none."""
    try:
        record = json.loads((run_dir / "progress.json").read_text())
        return Update(
            **{"detail": "", **{name: record[name] for name in Update.__dataclass_fields__ if name in record}}
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def in_words(seconds: float) -> str:
    """A duration as a person says it: ``45 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class RateMeter:
    """Rate and time left of the current piece of work.

    Work that is resumed starts at its checkpoint, so the rate is that of what was done since the first reading.
    """

    def __init__(self) -> None:
        self._first: Update | None = None

    def describe(self, update: Update) -> str:
        """For example ``7.5/s, 1 min 30 s left``; empty until there is a rate."""
        first = self._first
        if first is None or (first.step, first.label, first.total) != (update.step, update.label, update.total):
            self._first = update
            return ""
        elapsed, done = update.updated - first.updated, update.done - first.done
        if elapsed <= 0 or done <= 0:
            return ""
        rate = done / elapsed
        return f"{rate:.1f}/s, {in_words(max(update.total - update.done, 0) / rate)} left"


class ProgressView:
    """Draws a run's progress while the ``with`` block runs: bars on a terminal, else a line every few seconds."""

    def __init__(self, run_dir: Path, mode: Mode, console: Console | None = None) -> None:
        self._run_dir = run_dir
        self._mode = mode
        self._console = console or Console(stderr=True, highlight=False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> "ProgressView":
        if self._mode != "none":
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._mode != "none":
            self._thread.join()

    def _watch(self) -> None:
        if self._mode == "bar":
            self._draw_bars()
        else:
            self._print_lines()

    def _draw_bars(self) -> None:
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[pace]}"),
        )
        meter, task, title = RateMeter(), None, ""
        with Progress(*columns, console=self._console, transient=True, refresh_per_second=4) as bars:
            while not self._stop.wait(_POLL_SECONDS):
                update = read_update(self._run_dir)
                if update is None or not _worth_showing(update):
                    continue
                if title != (title := update.title):
                    task = _next_bar(bars, task, title, update.total)
                pace = meter.describe(update)
                pace = ", ".join(words for words in (pace, update.detail) if words)
                bars.update(task, completed=update.done, total=update.total or None, pace=pace)

    def _print_lines(self) -> None:
        meter, due, last = RateMeter(), 0.0, None
        while not self._stop.wait(_POLL_SECONDS):
            update = read_update(self._run_dir)
            if update is None or update == last or not _worth_showing(update):
                continue
            pace = meter.describe(update)
            if time.monotonic() >= due:
                due, last = time.monotonic() + _LINE_SECONDS, update
                count = f" {update.done}/{update.total}" if update.total else ""
                print(
                    ", ".join(words for words in (f"{update.title}{count}", pace, update.detail) if words),
                    file=sys.stderr,
                    flush=True,
                )


def _worth_showing(update: Update) -> bool:
    unfinished = update.total == 0 or update.done < update.total
    return unfinished and time.time() - update.started > _SILENT_SECONDS


def _next_bar(bars: Progress, old: TaskID | None, title: str, total: int) -> TaskID:
    if old is not None:
        bars.remove_task(old)
    return bars.add_task(title, total=total or None, pace="")


def choose_mode(quiet: bool, machine: bool) -> Mode:
    """Bars on a terminal, lines elsewhere, nothing for ``--quiet`` and ``--json``."""
    if quiet or machine:
        return "none"
    return "bar" if sys.stderr.isatty() else "lines"
