"""What the three server processes share: arguments, a bound socket, their parent's death. Imports no torch."""

import argparse
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from model.config import Section
from model.data.artifact import write_atomic
from model.data.errors import InputError

_PR_SET_PDEATHSIG = 1
SectionType = TypeVar("SectionType", bound=Section)


def parse_arguments(
    section: type[SectionType], argv: list[str], *, model: bool
) -> tuple[SectionType, Path, Path | None]:
    """Configuration, model directory and announcement file of a server process.

    ``--settings JSON`` fills ``section``, and so do ``--host``, ``--port``, ``--name``, ``--vision`` and
    ``--language-url``; ``--model DIR`` is read where ``model``; ``--announce FILE`` asks for a file with the bound
    port; ``--parent PID`` ties the process to its parent.

    Raises:
        InputError: a setting is unknown or out of range.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    if model:
        parser.add_argument("--model", type=Path, required=True, help="model directory")
    else:
        parser.add_argument("--vision", dest="vision_target", help="host:port of the vision predictor")
        parser.add_argument("--language-url", help="base URL of the language server")
    parser.add_argument("--name", dest="model_name", help="name under which the model is served")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="0 takes a free port")
    parser.add_argument("--settings", default="{}", help="further settings as a JSON object")
    parser.add_argument("--announce", type=Path, help="file that receives the bound port")
    parser.add_argument("--parent", type=int, help="end when this process ends")
    given = parser.parse_args(argv)
    if given.parent is not None:
        die_with_parent(given.parent)
    try:
        settings = json.loads(given.settings)
    except json.JSONDecodeError as error:
        raise InputError(f"--settings: not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise InputError("--settings: must be a JSON object")
    named = vars(given).items()
    settings |= {key: value for key, value in named if key in section.model_fields and value is not None}
    try:
        config = section(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"settings: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return config, getattr(given, "model", Path()), given.announce


def die_with_parent(parent: int) -> None:
    """Ask the kernel to end this process with SIGTERM when ``parent`` ends (Linux).

    A parent that ended before the request was made sends no signal, so its id is compared afterwards.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(f"parent process {parent} is gone")


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one.

    Raises:
        InputError: the port is in use, or the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(512)
    except OSError as error:
        bound.close()
        raise InputError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return bound


def announce(path: Path | None, port: int) -> None:
    """Tell the launcher which port was bound."""
    if path is not None:
        write_atomic(path, f"{port}\n".encode())


def run_main(main: Callable[[list[str]], None]) -> None:
    """Run ``main`` with the command line; a user's mistake prints one line and exits with 2."""
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
