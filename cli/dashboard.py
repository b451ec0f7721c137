"""The newest pipeline run as plain text: its steps, and how training goes. Read from files that may be half-written.

Nothing here waits, locks, or writes: looking never disturbs a run.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cli.progress import Update, in_words, read_update
from cli.training_log import Training, read_lines, read_object, read_training
from components.progress import TRAINING_FILE

State = Literal["running", "finished", "failed", "stopped"]

_SPARKS = "".join(chr(0x2581 + level) for level in range(8))
_ASCII_SPARKS = "_.-=+*#@"
_FIGURE_NAMES = {
    "clipped_low": "clipped below",
    "clipped_high": "clipped above",
    "divergence_compressed": "KL compressed",
    "divergence_full": "KL in full",
    "compress_share": "compress",
}
_SILENT_SECONDS = 60.0
_GIB = 1 << 30


@dataclass(frozen=True)
class Dashboard:
    """One pipeline run.

    Attributes:
        run_id: name of its directory.
        state: ``stopped`` is a run that neither goes on nor said why it ended: it was interrupted or killed.
        pid: the process that runs it; None where none does.
        seconds: since it began, or until it ended.
        steps: the finished ones, {step, key, cached, seconds, outputs}.
        planned: the steps of its pipeline, in order.
        current: what it is, or was last, busy with.
        training: by step.
        failure: {step, error, log, resume}.
    """

    run_id: str
    state: State
    pid: int | None
    seconds: float
    steps: list[dict[str, Any]]
    planned: list[str]
    current: Update | None
    training: dict[str, Training] = field(default_factory=dict)
    failure: dict[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def newest_run(out: Path) -> Path | None:
    """Directory of the newest pipeline run below ``out``, or None."""
    return max((path for path in (out / "runs").glob("*") if path.is_dir()), default=None)


def read_dashboard(run_dir: Path, lock: Path) -> Dashboard:
    """What the files of a run say; ``lock`` is the one that a running pipeline holds."""
    now, pid = time.time(), lock_holder(lock)
    steps = [
        line for line in read_lines(run_dir / "steps.jsonl") if {"step", "key", "cached", "seconds"} <= line.keys()
    ]
    failure = read_object(run_dir / "failure.json")
    planned = list((read_object(run_dir / "pipeline.json") or {}).get("configs") or {})
    done = {record["step"] for record in steps}
    if pid is not None:
        state: State = "running"
    elif failure is not None:
        state = "failed"
    else:
        state = "finished" if done and done >= set(planned) else "stopped"
    times = [file.stat().st_mtime for file in run_dir.glob("*.json*")] or [now]
    seconds = (now if state == "running" else max(times)) - min(times)
    training = read_training(run_dir / TRAINING_FILE)
    return Dashboard(run_dir.name, state, pid, seconds, steps, planned, read_update(run_dir), training, failure)


def lock_holder(lock: Path) -> int | None:
    """The process that a held lock names; None where nobody holds it. Reads the kernel's table, and takes no lock."""
    try:
        inode, text = lock.stat().st_ino, lock.read_text()
        table = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    held = any(":" in line and f":{inode} " in f"{line} " for line in table if "FLOCK" in line and "->" not in line)
    return int(text) if held and text.strip().isdigit() else None


def sparkline(values: Sequence[float | None], sparks: str = _SPARKS) -> str:
    """A curve of one character a value, from the lowest to the highest of them; a blank where there is none."""
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    top = len(sparks) - 1
    scale = top / (high - low) if high > low else 0.0
    return "".join(" " if value is None else sparks[min(top, round((value - low) * scale))] for value in values)


def render(dashboard: Dashboard, *, unicode: bool) -> list[str]:
    """The lines that ``fovea status`` prints; without ``unicode``, in ASCII."""
    lines = [f"run {dashboard.run_id}: {_state(dashboard)}"]
    done = {record["step"]: record for record in dashboard.steps}
    names = [*done, *(name for name in dashboard.planned if name not in done)]
    busy = dashboard.current.step if dashboard.current and dashboard.current.step not in done else None
    for name in [*names, *([busy] if busy and busy not in names else [])]:
        if name in done:
            record = done[name]
            how = "from the store" if record["cached"] else in_words(record["seconds"])
            lines.append(f"  {name:<17} {how:<15} key {record['key'][:12]}")
            if name in dashboard.training and not record["cached"]:
                lines.append(f"    {_summary(dashboard.training[name], unicode)}")
        elif name == busy:
            lines += _busy(dashboard, dashboard.current, unicode)
        elif dashboard.state == "running":
            lines.append(f"  {name:<17} to come")
    if dashboard.failure is not None and dashboard.state != "running":
        failure = {key: dashboard.failure.get(key) for key in ("step", "error", "log", "resume")}
        lines.append(f"  {failure['step']}: {failure['error']}")
        lines.append(f"  log: {failure['log']}; to continue: {failure['resume']}")
    return lines


def _state(dashboard: Dashboard) -> str:
    took = in_words(dashboard.seconds)
    return {
        "running": f"running for {took}, process {dashboard.pid}",
        "finished": f"finished in {took}",
        "failed": f"failed after {took}",
        "stopped": f"stopped after {took}; the command that started it continues it",
    }[dashboard.state]


def _busy(dashboard: Dashboard, update: Update, unicode: bool) -> list[str]:
    """The step that runs, or ran last."""
    now, running = time.time(), dashboard.state == "running"
    training = dashboard.training.get(update.step)
    trains = training is not None and training.stage == update.label
    said = [update.detail] if update.detail and running else []
    said.append(f"{in_words(now - update.started)} so far" if running else "not finished")
    if trains and running and training.seconds_left is not None:
        said.append(f"{in_words(training.seconds_left)} left")
    done = max(update.done, training.step) if trains else update.done  # the last step of a stopped stage is in one only
    count = f"{done} of {update.total} ({done / update.total:.0%})" if update.total else ""
    what = [update.label if update.label != update.step else "", f"step {count}" if trains else count]
    lines = [f"  {update.step:<17} {', '.join([' '.join(filter(None, what)), *said])}"]
    if training is not None:
        if not trains:
            lines.append(f"    {training.stage} ended at step {training.step} of {training.steps}")
        lines += [f"    {line}" for line in _details(training, unicode)]
    silent = now - max(update.updated, training.updated if training else 0.0)
    if running and silent > _SILENT_SECONDS:
        lines.append(f"    no news for {in_words(silent)}")
    return lines


def _details(training: Training, unicode: bool) -> list[str]:
    """The numbers of a stage that trains, or was interrupted."""
    memory = "-" if training.memory_bytes is None else f"{training.memory_bytes / _GIB:.2f} GiB"
    cells = [
        ("loss", _shown(training.loss, ".4f"), "", _curve(training, unicode)),
        ("learning rate", _shown(training.learning_rate, ".2e"), "gradient norm", _shown(training.grad_norm, ".3g")),
        ("tokens/s", _shown(training.tokens_per_second, ",.0f"), "MFU", _shown(training.mfu, ".1%")),
        ("data wait", _shown(training.data_wait_share, ".1%"), "padding", _shown(training.padding_share, ".1%")),
        ("peak memory", memory, "", ""),
    ]
    lines = [f"{a:<14}{b:<12}{c + ' ' * (14 - len(c)) if c else ''}{d}".rstrip() for a, b, c, d in cells]
    return [*lines, *(_figure(name, values, unicode) for name, values in training.figures.items())]


def _figure(name: str, values: Sequence[float | None], unicode: bool) -> str:
    """What a stage says of its steps: the last value, the curve, and where it began."""
    known = [value for value in values if value is not None]
    curve = sparkline(values, _SPARKS if unicode else _ASCII_SPARKS)
    return f"{_FIGURE_NAMES.get(name, name):<14}{known[-1]:<12.4g}{curve} from {known[0]:.4g}"


def _summary(training: Training, unicode: bool) -> str:
    """A finished stage in one line."""
    speed = f"{_shown(training.tokens_per_second, ',.0f')} tokens/s"
    mfu = f", MFU {training.mfu:.1%}" if training.mfu is not None else ""
    reward = training.figures.get("reward")
    if reward is not None:  # the loss of a policy is around zero, and says little
        return f"{' '.join(_figure('reward', reward, unicode).split())}; {speed}{mfu}"
    return f"loss {_shown(training.loss, '.4f')} {_curve(training, unicode)}; {speed}{mfu}"


def _curve(training: Training, unicode: bool) -> str:
    """The last losses; the first of them as a number, because a curve has no scale."""
    curve = sparkline(training.losses, _SPARKS if unicode else _ASCII_SPARKS)
    return f"{curve} from {_shown(training.losses[0], '.4f')} in {len(training.losses)} steps"


def _shown(value: float | None, shape: str) -> str:
    return "-" if value is None else format(value, shape)
