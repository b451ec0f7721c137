"""Where the processes of a step run: this one, or several on this machine. A cluster backend has the same face.

A step is one program for all ranks. The caller holds the store's lock, tracks and publishes; ranks only compute, and
rank 0 alone reports progress, writes the outputs and gives the result.
"""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from components.context import Registry, StepContext, StepResult, no_metrics, no_progress
from components.progress import MetricsFile, ProgressFile
from model.data.errors import InputError
from model.training.config import TrainingConfig


@dataclass(frozen=True)
class StepCall:
    """One call of ``components.<step>.step.run``.

    Attributes:
        step: name of the step.
        config: its section.
        inputs, outputs: directories by the names of its parameters; those of ``outputs`` do not exist yet.
        published: where each input lies for good.
        state_dir: what survives a kill.
        run_dir: takes progress and metrics; None outside a pipeline run.
        registry: for the steps that may see it.
    """

    step: str
    config: BaseModel
    inputs: dict[str, Path]
    outputs: dict[str, Path]
    published: dict[str, Path]
    state_dir: Path
    run_dir: Path | None = None
    registry: Registry | None = field(default=None, repr=False)


class Launcher(Protocol):
    """Runs a step somewhere, and waits for it."""

    def run(self, call: StepCall, ranks: int) -> StepResult:
        """The result of rank 0, when all ranks have ended.

        However this ends, no rank is left: killed, interrupted, or with a rank that fails alone.

        Raises:
            InputError: a user's mistake, told once however many ranks met it.
            Stopped: SIGTERM came to this process, and training wrote a checkpoint.
            RankFailed: a rank failed with a bug, or was killed.
        """


class RankFailed(RuntimeError):
    """A rank ended with an error of its own; the message names it, the cause is its traceback."""


class InThisProcess:
    """The step is a function call; its errors pass through."""

    def run(self, call: StepCall, ranks: int) -> StepResult:
        """Call the step. ``ranks`` must be 1."""
        if ranks != 1:
            raise ValueError(f"one process is not {ranks} ranks")
        return perform(call)


def perform(call: StepCall, rank: int = 0, ranks: int = 1) -> StepResult:
    """Be one rank of a step: call its ``run`` in this process."""
    run = importlib.import_module(f"components.{call.step}.step").run
    lead = rank == 0
    context = StepContext(
        state_dir=call.state_dir,
        progress=ProgressFile(call.run_dir, call.step) if lead else no_progress,
        registry=call.registry,
        published=call.published,
        metrics=MetricsFile(call.run_dir, call.step) if lead else no_metrics,
        cache_dir=call.state_dir.parent / "cache" / call.step,
        rank=rank,
        ranks=ranks,
    )
    return run(call.config, **call.inputs, **call.outputs, context=context)


def ranks_of(step: str, config: BaseModel) -> int:
    """Processes that a step asks for: ``processes`` of its training; 1 for a step that trains nothing.

    Raises:
        InputError: it trains twice, with different numbers.
    """
    trainings = {name: value for name, value in config if isinstance(value, TrainingConfig)}
    if len({training.processes for training in trainings.values()}) > 1:
        said = ", ".join(f"{name}.processes is {training.processes}" for name, training in trainings.items())
        raise InputError(f"{step}: {said}; a step has one number of processes")
    return max((training.processes for training in trainings.values()), default=1)


def launcher_for(ranks: int) -> Launcher:
    """The launcher of this machine for so many ranks."""
    if ranks == 1:
        return InThisProcess()
    from components.torchrun import Torchrun

    return Torchrun()
