"""How gradients are made and applied: in one process, with a copy in each of several, or divided by DeepSpeed ZeRO.

An engine owns the network while it trains. ``tensors`` and ``load`` speak of whole parameters by name whatever the
engine divides, so that a checkpoint of one engine, or of another number of processes, serves every other.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import NamedTuple, Protocol

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from model.data.errors import InputError
from model.families.interface import Network
from model.training.batches import Batch
from model.training.config import TrainingConfig

LONGEST_WAIT = timedelta(days=1)
"""How long ranks wait for the slowest: where answers are sampled, one may be hours behind another, and the backends'
own limits are minutes. A rank that dies is no case for it: torchrun ends the others."""

# (network, batch, denominator) to the micro-batch's share of the step's loss.
LossFunction = Callable[[Network, Batch, float], Tensor]
# What is wanted of a batch without gradients.
Evaluation = Callable[[Network, Batch], Tensor]


class Slot(NamedTuple):
    """A trained parameter with its AdamW moments, all float32; the moments are None before the first update."""

    name: str
    weight: Tensor
    exp_avg: Tensor | None
    exp_avg_sq: Tensor | None


class Engine(Protocol):
    """What the loop needs of an engine."""

    device: torch.device
    rank: int
    ranks: int

    def backward(self, batch: Batch, denominator: float, *, last: bool) -> float:
        """Loss of one micro-batch, its gradient added; ``last`` of the optimiser step synchronises the ranks."""

    def step(self, learning_rate: float) -> float:
        """Clip, update, forget the gradients; returns the norm before clipping."""

    def evaluate(self, wanted: Evaluation, batch: Batch) -> Tensor:
        """``wanted`` of the network as it is, in evaluation mode and without gradients; the batch may lie anywhere.

        Where weights are divided, every rank has to call this, with a ``wanted`` that runs the same modules equally
        often.
        """

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks."""

    def max(self, values: Sequence[float]) -> list[float]:
        """Largest values over the ranks."""

    def tensors(self) -> Iterator[Slot]:
        """The trained parameters, whole, one after the other. Every rank has to walk through it."""

    def load(self, slots: Iterable[Slot], updates: int) -> None:
        """Put back what ``tensors`` gave after ``updates`` updates."""

    def finish(self) -> None:
        """Leave the network whole, in float32, and free of the engine."""


class LossModule(nn.Module):
    """The network and its loss as one module, whose forward pass is what an engine wraps."""

    def __init__(self, network: Network, loss: LossFunction) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, batch: Batch, denominator: float, wanted: Evaluation | None = None) -> Tensor:
        """The micro-batch's share of the step's loss, or else what is ``wanted`` of it."""
        return self.loss(self.network, batch, denominator) if wanted is None else wanted(self.network, batch)


def make_optimizer(network: Network, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over what requires a gradient; vectors (norms, biases, layer scales) do not decay.

    Every group has a ``scale``: its learning rate over that of the stage.
    """
    peaks = {"vision": config.vision_learning_rate, "projector": config.projector_learning_rate, "language": None}
    peaks |= {"compressed": config.compressed_learning_rate or config.projector_learning_rate, "router": None}
    parts = network.parts()
    scales = {id(p): (peak or config.learning_rate) for part, peak in peaks.items() for p in parts.parameters(part)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((scales[id(parameter)] / config.learning_rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": found, "weight_decay": decay, "scale": scale} for (scale, decay), found in groups.items()],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def world() -> tuple[int, int]:
    """(rank, ranks) of this process, as its launcher says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def make_engine(network: Network, loss: LossFunction, config: TrainingConfig, micro_batches: int) -> Engine:
    """The engine that the configuration asks for; trains the parameters that require a gradient.

    Args:
        network: on the CPU, in float32.
        loss: of the stage.
        config: precision, optimiser, ZeRO.
        micro_batches: of this rank in one optimiser step.

    Raises:
        InputError: as many processes as the configuration says are not there.
    """
    ranks = world()[1]
    if ranks != config.processes:
        raise InputError(f"training.processes is {config.processes}, but {ranks} processes were started")
    if config.zero is None:
        return PlainEngine(network, loss, config)
    from model.training.zero import ZeroEngine  # DeepSpeed takes seconds to import, and most runs do without

    return ZeroEngine(network, loss, config, micro_batches)


class PlainEngine:
    """One process, or PyTorch's data parallelism with a copy of everything in each."""

    def __init__(self, network: Network, loss: LossFunction, config: TrainingConfig) -> None:
        precision = "bf16" if config.precision == "bfloat16" else "no"
        # accelerate keeps the first precision of a process for good; stages of one process may differ in it.
        AcceleratorState._reset_state()
        patience = InitProcessGroupKwargs(timeout=LONGEST_WAIT)
        on_cpu = not torch.cuda.is_available()
        self._accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu, kwargs_handlers=[patience])
        self.device = self._accelerator.device
        self.rank, self.ranks = self._accelerator.process_index, self._accelerator.num_processes
        self._clip = config.grad_clip
        self._network = network
        # Moved to its device first: what the optimiser resumes with has to lie where the parameters lie.
        self._module = self._accelerator.prepare(LossModule(network, loss))
        self._trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._optimizer = make_optimizer(network, config)

    def backward(self, batch: Batch, denominator: float, *, last: bool) -> float:
        """Loss of one micro-batch, its gradient added."""
        together: AbstractContextManager[None] = nullcontext()
        if self.ranks > 1 and not last:
            together = self._accelerator.no_sync(self._module)
        with together:
            with self._accelerator.autocast():
                loss = self._module(batch, denominator)
            # In one process rows without media leave out the vision half, and with it all that may train.
            if loss.requires_grad:
                self._accelerator.backward(loss)
        return loss.item()

    def step(self, learning_rate: float) -> float:
        """Clip, update, forget the gradients; returns the norm before clipping."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        for parameter in self._trained.values():
            if parameter.grad is None:
                # Zero, as it is among several processes: every parameter has as many updates as the run has steps.
                parameter.grad = torch.zeros_like(parameter)
        norm = float(self._accelerator.clip_grad_norm_(self._trained.values(), self._clip))
        # A step that cannot be right is not taken: the loop stops with the rows' names, and the checkpoint stays good.
        if norm == norm and norm != float("inf"):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def evaluate(self, wanted: Evaluation, batch: Batch) -> Tensor:
        """``wanted`` of the network, in evaluation mode and without gradients."""
        training = self._network.training
        self._network.eval()
        try:
            with self._accelerator.autocast():
                return wanted(self._network, batch.to(self.device))
        finally:
            self._network.train(training)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks."""
        return self._reduce(values, torch.distributed.ReduceOp.SUM) if self.ranks > 1 else list(values)

    def max(self, values: Sequence[float]) -> list[float]:
        """Largest values over the ranks."""
        return self._reduce(values, torch.distributed.ReduceOp.MAX) if self.ranks > 1 else list(values)

    def _reduce(self, values: Sequence[float], operation: torch.distributed.ReduceOp) -> list[float]:
        return reduce_values(values, operation, self.device)

    def tensors(self) -> Iterator[Slot]:
        """The trained parameters with their moments."""
        for name, parameter in self._trained.items():
            state = self._optimizer.state.get(parameter, {})
            yield Slot(name, parameter.detach(), state.get("exp_avg"), state.get("exp_avg_sq"))

    def load(self, slots: Iterable[Slot], updates: int) -> None:
        """Put back what ``tensors`` gave after ``updates`` updates."""
        with torch.no_grad():
            for slot in slots:
                parameter = self._trained[slot.name]
                parameter.copy_(slot.weight)
                if slot.exp_avg is not None:
                    self._optimizer.state[parameter] = adam_state(parameter, slot, updates)

    def finish(self) -> None:
        """Free what the optimiser holds."""
        self._optimizer.state.clear()
        self._accelerator.free_memory()


def adam_state(parameter: Tensor, slot: Slot, updates: int) -> dict[str, Tensor]:
    """AdamW's state (fused form) of one parameter."""
    moments = {"exp_avg": slot.exp_avg, "exp_avg_sq": slot.exp_avg_sq}
    state = {name: torch.empty_like(parameter).copy_(moment) for name, moment in moments.items()}
    return {"step": torch.tensor(float(updates), device=parameter.device), **state}


def reduce_values(values: Sequence[float], operation: torch.distributed.ReduceOp, device: torch.device) -> list[float]:
    """All-reduce a few numbers in float64."""
    together = torch.tensor(list(values), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(together, operation)
    return together.tolist()
