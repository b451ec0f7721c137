"""What benchmarks share: sides in turns, in processes of their own, and one result format (DESIGN, "Benchmark").

``ratio`` above 1 means that we are better than the peer. ``--json`` prints the result as one last line, ``--write``
stores it as ``benchmarks/results/<name>-<date>.json``.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from model.data.artifact import write_atomic
from model.data.errors import InputError
from model.machine import computes_bfloat16, processor

_Measured = TypeVar("_Measured")
RESULTS = Path(__file__).parent / "results"
REPOSITORY = Path(__file__).parent.parent


@dataclass(frozen=True)
class Spread:
    """All measured values of both sides, in the order they were taken, in the result's unit."""

    ours: list[float]
    peer: list[float]


@dataclass(frozen=True)
class Result:
    """One figure.

    ``ours`` and ``peer`` are medians; ``aim`` is the least ratio we want to see; ``details`` is whatever else helps a
    reader.
    """

    name: str
    unit: str
    ours: float
    peer: float
    ratio: float
    spread: Spread
    aim: float
    hardware: str
    commit: str
    date: str
    command: str
    details: dict[str, Any]


def hardware() -> str:
    """Processor, core count and memory of this machine, and whether it computes in bfloat16."""
    cpu = processor()[0] or platform.processor() or platform.machine()
    gib = 0.0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            gib = int(line.split()[1]) / (1 << 20)
    cores = sum(line.startswith("processor") for line in Path("/proc/cpuinfo").read_text().splitlines())
    return f"{cpu}, {cores} cores, {gib:.0f} GiB, {'bfloat16' if computes_bfloat16() else 'no bfloat16'}"


def commit() -> str:
    """The commit of this checkout, with ``+`` when tracked files differ from it; ``unknown`` outside git."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown"
    query = ["git", "status", "--porcelain", "--untracked-files=no"]
    changed = subprocess.run(query, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def median(values: list[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def in_turns(
    rounds: int, measure: Callable[[str], _Measured], tell: Callable[[str, _Measured], None]
) -> dict[str, list[_Measured]]:
    """Measurements of the sides ``ours`` and ``peer``; who is first changes from round to round.

    Args:
        rounds: how often each is measured.
        measure: of a side.
        tell: is given a name for every measurement.
    """
    sides: dict[str, list[_Measured]] = {"ours": [], "peer": []}
    for number in range(rounds):
        for side in sorted(sides, reverse=bool(number % 2)):
            sides[side].append(measure(side))
            tell(f"round {number + 1}: {side}", sides[side][-1])
    return sides


def fresh_process(benchmark: str, side: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """What ``worker`` of ``benchmarks.<benchmark>`` prints as its last line, JSON, when a new process gives it the job.

    Raises:
        InputError: the process failed; its last line says why.
    """
    code = f"import sys; from benchmarks.{benchmark} import worker; worker(sys.stdin.read())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}: out of memory?"]
        raise InputError(f"{benchmark}: the process of {side} failed: {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


class _Here(Executor):
    """Runs a job when it is submitted, in the thread that submits it: Ctrl-C ends it at once."""

    def submit(self, job: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(job(*args, **kwargs))
        return done


@contextmanager
def workers(processes: int) -> Iterator[Executor]:
    """So many new processes to run jobs in, this one itself when it is one; after an error no other job starts."""
    pool = _Here() if processes == 1 else ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def processes_for(options: argparse.Namespace) -> int:
    """Of a benchmark that counts processor seconds: one for every processor, and one alone when quick."""
    return 1 if options.quick else os.cpu_count() or 1


def need_line(line: Path, *outputs: str) -> None:
    """Check that the line has these outputs, as ``sft/model``.

    Raises:
        InputError: it has not.
    """
    if not all((line / output).is_dir() for output in outputs):
        raise InputError(f"{line}: no finished line here; run make demo first")


def compare_memory(peaks_mib: Mapping[str, list[float]]) -> dict[str, Any]:
    """Print the most memory of ``ours`` and ``peer``; medians and ratio (above 1: ours holds less), for ``details``."""
    memory = {side: median(peaks) for side, peaks in peaks_mib.items()}
    print(f"peak memory: ours {memory['ours']:.0f} MiB, peer {memory['peer']:.0f} MiB")
    return {"peak_mib": memory, "peak_mib_ratio": round(memory["peer"] / memory["ours"], 4)}


def result(
    name: str,
    unit: str,
    ours: list[float],
    peer: list[float],
    *,
    ratio: float,
    aim: float,
    details: dict[str, Any] | None = None,
) -> Result:
    """Assemble a result from all measured values and the ratio the benchmark defines."""
    return Result(
        name=name,
        unit=unit,
        ours=round(median(ours), 4),
        peer=round(median(peer), 4),
        ratio=round(ratio, 4),
        spread=Spread([round(value, 4) for value in ours], [round(value, 4) for value in peer]),
        aim=aim,
        hardware=hardware(),
        commit=commit(),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        command=f"python -m benchmarks.{name} {shlex.join(sys.argv[1:])}".strip(),
        details=details or {},
    )


def arguments(description: str, argv: list[str] | None = None, **numbers: str) -> argparse.Namespace:
    """The three flags every benchmark has: ``quick``, ``json``, ``write``.

    ``numbers`` are names of further options, with their help; each takes a number and is None when it is not given.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="about a minute of measuring")
    parser.add_argument("--json", action="store_true", help="print the result as one last line of JSON")
    parser.add_argument("--write", action="store_true", help="store the result under benchmarks/results/")
    for name, text in numbers.items():
        parser.add_argument(f"--{name}", type=float, help=text)
    return parser.parse_args(argv)


def run(description: str, measure: Callable[[argparse.Namespace], Result], **numbers: str) -> int:
    """A benchmark's ``main``: measure as the flags say, and report. Returns the exit status: 2 after a mistake, told
    in one line.

    Args:
        description: of the benchmark; its first line is what ``--help`` says.
        measure: is given the flags.
        numbers: further flags, as ``arguments`` takes them.
    """
    options = arguments(description.splitlines()[0], **numbers)
    try:
        report(measure(options), options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def report(measured: Result, options: argparse.Namespace, results: Path = RESULTS) -> None:
    """Print the table; then, as asked, store the result and print its JSON line."""
    low_ours, high_ours = min(measured.spread.ours), max(measured.spread.ours)
    low_peer, high_peer = min(measured.spread.peer), max(measured.spread.peer)
    print(f"{measured.name} ({measured.unit}), {measured.hardware}, commit {measured.commit[:12]}")
    print(f"  ours   {measured.ours:10.3f}   {low_ours:.3f} to {high_ours:.3f}")
    print(f"  peer   {measured.peer:10.3f}   {low_peer:.3f} to {high_peer:.3f}")
    print(f"  ratio  {measured.ratio:10.3f}   aim {measured.aim}")
    if options.write:
        path = results / f"{measured.name}-{measured.date}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(asdict(measured), indent=2) + "\n").encode())
        print(f"  stored in {path}")
    if options.json:
        print(json.dumps(asdict(measured)))
