"""Start, watch and stop the three servers on this machine. Imports no torch.

``start`` gives back a running deployment; in the foreground its processes die with this one, detached they outlive
it. ``<directory>/<name>.json`` records what runs, so that ``stop`` finds it from anywhere.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
from filelock import FileLock, Timeout

from model.data.artifact import write_atomic
from model.data.errors import InputError
from serving.deployment import Deployment, Process, read_deployment
from serving.process import bind

_POLL_S, _READY_POLL_S = 0.05, 0.25
_STOP_S = 10.0


@dataclass
class ServerProcess:
    """One running server.

    ``started`` is its start time in clock ticks since boot: with the id it names a process for good, where an id alone
    is given out again.
    """

    name: str
    pid: int
    started: int
    port: int
    log: str

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return _start_ticks(self.pid) == self.started


@dataclass
class Served:
    """A running deployment, as its state file records it."""

    name: str
    endpoint: str
    model: str
    """Name under which the gateway serves the model."""
    storage: str
    processes: list[ServerProcess]
    children: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def ended(self) -> ServerProcess | None:
        """A server that is no more, or None."""
        return next((process for process in self.processes if not process.alive()), None)


def start(
    path: Path,
    directory: Path,
    *,
    name: str = "fovea",
    host: str = "127.0.0.1",
    port: int = 0,
    language_url: str | None = None,
    detach: bool = False,
    timeout_s: float = 240.0,
    report: Callable[[str], None] = lambda line: None,
) -> Served:
    """Serve a model directory or a rendered deployment, and wait until the gateway finds both predictors ready.

    Args:
        path: see ``serving.deployment.read_deployment``.
        directory: gets the state file, and a folder of logs.
        name: of the deployment, among those on this machine.
        host: address of the gateway.
        port: of the gateway; 0 takes a free one.
        language_url: an external language server (vLLM) to use in place of our own.
        detach: let the servers outlive this process. Else call from the main thread: the kernel ends the servers with
            the thread that started them.
        timeout_s: longest wait for readiness.
        report: receives a line per step.

    Raises:
        InputError: the name is being served, the port is in use, or a server did not start; one line, with its log.
    """
    deployment = read_deployment(path)
    model = deployment.model_directory()
    if port:
        bind(host, port).close()
    with _locked(directory, name):
        running = read_state(directory, name)
        if running is not None and running.ended() is None:
            raise InputError(f"{name} is being served at {running.endpoint}; stop it first (fovea stop)")
        if running is not None:
            _end(running)
        launch = _Launch(deployment, model, directory / name, detach, time.monotonic() + timeout_s)
        try:
            served = launch.run(name, host, port, language_url, report)
            _write_state(directory, served)
        except BaseException:
            launch.abort()
            raise
    return served


def stop(directory: Path, name: str) -> bool:
    """End the servers of ``name``: politely, then by force. False when none was recorded."""
    with _locked(directory, name):
        served = read_state(directory, name)
        if served is None:
            return False
        _end(served)
        _state_file(directory, name).unlink(missing_ok=True)
    return True


def names(directory: Path) -> list[str]:
    """Names of all recorded deployments."""
    return sorted(path.stem for path in directory.glob("*.json"))


@contextmanager
def serving(path: Path, directory: Path, **options: Any) -> Iterator[Served]:
    """``start``, and ``stop`` at the end of the block."""
    served = start(path, directory, **options)
    try:
        yield served
    finally:
        _end(served)
        _state_file(directory, served.name).unlink(missing_ok=True)


def wait(served: Served, directory: Path) -> None:
    """Return when ``served`` was stopped from elsewhere.

    Raises:
        InputError: a server ended by itself; names it and its log.
    """
    while (ended := served.ended()) is None:
        for child in served.children:
            child.poll()
        time.sleep(0.2)
    with _locked(directory, served.name):
        if _state_file(directory, served.name).exists():
            raise InputError(f"the {ended.name} server ended: {_last_line(Path(ended.log))}; log: {ended.log}")


def read_state(directory: Path, name: str) -> Served | None:
    """What the state file of ``name`` records, or None."""
    try:
        state = json.loads(_state_file(directory, name).read_text(encoding="utf-8"))
        processes = [ServerProcess(**process) for process in state.pop("processes")]
        state.pop("schema_version")
        return Served(**state, processes=processes)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{_state_file(directory, name)}: not a state file: {error}") from error


class _Launch:
    """The start of one deployment."""

    def __init__(self, deployment: Deployment, model: Path, logs: Path, detach: bool, deadline: float) -> None:
        self._deployment, self._model, self._logs = deployment, model, logs
        self._detach, self._deadline = detach, deadline
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, name: str, host: str, port: int, language_url: str | None, report: Callable[[str], None]) -> Served:
        self._logs.mkdir(parents=True, exist_ok=True)
        predictors = [process for process in self._deployment.processes if process.name != "gateway"]
        gateway = next((process for process in self._deployment.processes if process.name == "gateway"), None)
        if gateway is None:
            raise InputError("the deployment has no gateway")
        if language_url is not None:
            predictors = [process for process in predictors if process.name != "language"]
        for process in predictors:
            self._spawn(process, {"model": str(self._model)}, [])
        ports = {process.name: self._port(process.name) for process in predictors}
        addresses = {key: f"127.0.0.1:{value}" for key, value in ports.items()}
        # Given last, so that they win over what the deployment says.
        extra = ["--host", host, "--port", str(port)]
        if language_url is not None:
            addresses["language"] = language_url.removeprefix("http://")
            extra += ["--language-url", language_url]
        self._spawn(gateway, addresses, extra)
        ports["gateway"] = self._port("gateway")
        endpoint = f"http://{f'[{host}]' if ':' in host else host}:{ports['gateway']}"
        report(f"waiting for {', '.join(ports)} (logs: {self._logs})")
        served_name = self._await_ready(endpoint)
        processes = [
            ServerProcess(key, child.pid, _start_ticks(child.pid) or 0, ports[key], str(self._log(key)))
            for key, child in self._children.items()
        ]
        return Served(name, endpoint, served_name, str(self._model), processes, list(self._children.values()))

    def abort(self) -> None:
        """End what was started."""
        _terminate([], list(self._children.values()))

    def _log(self, name: str) -> Path:
        return (self._logs / f"{name}.log").absolute()

    def _spawn(self, process: Process, values: dict[str, str], extra: list[str]) -> None:
        announcement = self._logs / f"{process.name}.port"
        announcement.unlink(missing_ok=True)
        args = []
        for arg in process.args:
            for key, value in values.items():
                arg = arg.replace("{" + key + "}", value)
            args.append(arg)
        command = [sys.executable, "-m", process.module, *args, *extra, "--announce", str(announcement)]
        if not self._detach:
            command += ["--parent", str(os.getpid())]
        with self._log(process.name).open("wb") as log:
            # A session of its own: Ctrl-C in the terminal reaches the launcher alone, which then stops its servers.
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self._children[process.name] = child

    def _check(self) -> None:
        for name, child in self._children.items():
            if child.poll() is not None:
                raise InputError(
                    f"the {name} server did not start: {_last_line(self._log(name))}; log: {self._log(name)}"
                )
        if time.monotonic() > self._deadline:
            raise InputError(f"the servers were not ready in time; logs: {self._logs.absolute()}")

    def _port(self, name: str) -> int:
        announcement = self._logs / f"{name}.port"
        while not announcement.exists():
            self._check()
            time.sleep(_POLL_S)
        return int(announcement.read_text())

    def _await_ready(self, endpoint: str) -> str:
        """Wait for the gateway to find both predictors; gives the name of the served model."""
        with httpx.Client(base_url=endpoint, trust_env=False, timeout=10) as client:
            while True:
                self._check()
                with suppress(httpx.HTTPError):
                    if client.get("/healthz").status_code == httpx.codes.OK:
                        return str(client.get("/v1/models").json()["data"][0]["id"])
                # Each question makes the gateway ask both predictors, which are busy loading.
                time.sleep(_READY_POLL_S)


def _end(served: Served) -> None:
    _terminate([process for process in served.processes if process.alive()], served.children)


def _terminate(processes: list[ServerProcess], children: "list[subprocess.Popen[bytes]]") -> None:
    """SIGTERM, then SIGKILL after ten seconds. Own children are reaped; others are recognised by their start time."""
    known = {child.pid for child in children}
    strangers = [process for process in processes if process.pid not in known]

    def signal_all(number: signal.Signals) -> None:
        for child in children:
            child.send_signal(number)
        for process in strangers:
            if process.alive():
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    signal_all(signal.SIGTERM)
    until = time.monotonic() + _STOP_S
    while any(child.poll() is None for child in children) or any(process.alive() for process in strangers):
        if time.monotonic() > until:
            signal_all(signal.SIGKILL)
        time.sleep(_POLL_S)


def _start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None when it is gone or a zombie (proc(5), field 22)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _last_line(log: Path) -> str:
    """The last line of a log: for a user's mistake the whole message, for a bug the exception."""
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
    return "it wrote nothing"


def _state_file(directory: Path, name: str) -> Path:
    return directory / f"{name}.json"


def _write_state(directory: Path, served: Served) -> None:
    state = asdict(Served(served.name, served.endpoint, served.model, served.storage, served.processes))
    state.pop("children")
    write_atomic(_state_file(directory, served.name), json.dumps({"schema_version": 1} | state, indent=1).encode())


@contextmanager
def _locked(directory: Path, name: str) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / f".{name}.lock", timeout=15)
    try:
        with lock:
            yield
    except Timeout:
        raise InputError(f"{name} is being started or stopped by another process") from None
