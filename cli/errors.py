"""Where a user's mistake, a full disk or an interrupt becomes one line. A bug keeps its traceback."""

import os
import shlex
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from model.data.errors import InputError
from model.training.stopping import STOPPED_STATUS, Stopped


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as Ctrl-C does, with another exit status."""


def resume_command() -> str:
    """The command that continues this one: what the user typed."""
    return os.environ.get("FOVEA_RESUME") or shlex.join(["fovea", *sys.argv[1:]])


class OneLineErrors(TyperGroup):
    """A group of commands whose errors are lines."""

    def invoke(self, ctx: typer.Context) -> Any:
        """Run the command; exits with 2 for a mistake or a full disk, with 130 for Ctrl-C, with 143 for SIGTERM."""
        try:
            return super().invoke(ctx)
        except InputError as error:
            _complain([f"error: {line}" for line in str(error).splitlines()])
            raise typer.Exit(2) from error
        except Stopped as stopped:
            _complain([f"{stopped}; to continue: {resume_command()}"])
            raise typer.Exit(STOPPED_STATUS) from stopped
        except KeyboardInterrupt as error:
            where = f" {error}" if str(error) else ""
            _complain([f"interrupted{where}; what is done is kept; to continue: {resume_command()}"])
            raise typer.Exit(STOPPED_STATUS if isinstance(error, Terminated) else 130) from error
        except Exception as error:
            disk = _full_disk(error)
            if disk is None:
                raise
            _complain([f"error: no space left on {disk}; free some, then: {resume_command()}"])
            raise typer.Exit(2) from error


def _full_disk(error: Exception) -> str | None:
    """The place that is full, if that is what went wrong."""
    from components.failure import full_disk
    from components.settings import Settings

    return full_disk(error, Settings.from_environment())


def _complain(lines: list[str]) -> None:
    for line in lines:
        print(f"fovea: {line}", file=sys.stderr)
