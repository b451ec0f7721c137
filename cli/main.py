"""The ``fovea`` command: one Typer application.

Command modules import what they need inside their functions: ``fovea --help`` must not wait for torch, kfp or MLflow.
"""

import signal
from types import FrameType

import typer

from cli import adapter, chat, convert, critic, data, demo, look, registry, routing, run, serve
from cli import compile as compiling
from cli.errors import OneLineErrors, Terminated

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
    help="A Kubeflow-native factory for vision-language models.",
    epilog="First time here? `make demo`, then `fovea status`.",
)
for commands in (demo, run, look, compiling, registry, adapter, convert, critic, data, routing):
    commands.mount(app)
for command in (serve.serve, serve.stop, chat.chat):
    app.command()(command)


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def main() -> None:
    """Entry point. SIGTERM ends a command as Ctrl-C does, children first."""
    signal.signal(signal.SIGTERM, _terminated)
    app()


if __name__ == "__main__":
    main()
