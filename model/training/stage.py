"""What differs between the stages of training; everything else is the loop's (model/training/loop.py)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from model.data.schema import Row
from model.families.interface import Network, Processor
from model.training.config import TrainingConfig
from model.training.engine import Engine, LossFunction
from model.training.reader import BatchReader, Reading

SumFunction = Callable[[Sequence[float]], list[float]]
"""Sums over the ranks, of as many numbers on each."""


class Source(Protocol):
    """Where the batches of a stage come from."""

    @property
    def micro_batches(self) -> int:
        """Micro-batches of this rank in every optimiser step."""

    def resume(self, packer: dict[str, Any] | None) -> None:
        """Continue after a step whose ``Reading.packer`` this is."""

    def read(self, first: int, last: int) -> Iterator[Reading]:
        """Steps ``first`` to ``last - 1``, in order.

        The loop asks for a step after the update of the one before, so a source may let the network make its batches.
        """


class MakeSource(Protocol):
    """Makes the source of a stage; ``BatchReader`` is one."""

    def __call__(
        self, rows: Sequence[Row], processor: Processor, config: TrainingConfig, *, ranks: int, rank: int, blank: bool
    ) -> Source:
        """Args:

        rows: the dataset.
        processor: of the network's family.
        config: batch, order of rows.
        ranks, rank: this process takes its share of every step.
        blank: give a batch without media a blank visual item, so that all ranks run the same modules.
        """


class StageMemory(Protocol):
    """What a loss keeps from step to step, such as a running mean."""

    def step_done(self, sum_over_ranks: SumFunction) -> dict[str, Any]:
        """Called on every rank after each update; returns what to record of the step, the same on every rank."""

    def state(self) -> dict[str, Any]:
        """For a checkpoint; JSON keeps it."""

    def load(self, state: dict[str, Any]) -> None:
        """Put back what ``state`` gave."""


@dataclass(frozen=True)
class Stage:
    """What differs between stages.

    Attributes:
        name: for progress and messages.
        loss: (network, batch, denominator) to the micro-batch's share of the step's loss. The denominator is the sum of
            ``Batch.weights`` over the micro-batches and ranks of the step.
        parameters: which parameters train.
        source: makes the batches.
        memory: what the loss keeps; None when it keeps nothing.
        packed: its batches are packs, whatever the configuration says of packing.
        prepare: given the engine and the stage's source while the network is still what training starts from, before a
            checkpoint is taken up and at every start; all ranks call it. For what the loss has to know of that network
            (``Engine.evaluate``).
    """

    name: str
    loss: LossFunction
    parameters: Callable[[Network], Iterable[nn.Parameter]]
    source: MakeSource = BatchReader
    memory: StageMemory | None = None
    packed: bool = False
    prepare: Callable[[Engine, Any], None] | None = None


def trained_parameters(config: TrainingConfig) -> Callable[[Network], Iterable[nn.Parameter]]:
    """Those that ``TrainingConfig.train`` names."""
    match config.train:
        case "projector":
            return lambda network: network.parts().parameters("projector")
        case "without_vision":
            return lambda network: network.parts().parameters("projector", "language")
        case _:
            return lambda network: network.parts().parameters("vision", "projector", "language")
