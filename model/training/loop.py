"""The one training loop: packing, engines, schedule, checkpoints, exact resume."""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from model.data.errors import InputError
from model.data.schema import Row
from model.families.interface import Network, Processor
from model.objectives.next_token import chunked_next_token_loss
from model.training.attention import set_attention, use_varlen_attention
from model.training.batches import Batch
from model.training.checkpoints import TrainingState, load_checkpoint, save_checkpoint
from model.training.config import TrainingConfig
from model.training.drop_path import drop_path
from model.training.engine import Engine, make_engine, world
from model.training.flops import step_cost
from model.training.memory import checkpoint_activations, compiled_layers
from model.training.metrics import TrainingMetrics
from model.training.reader import Reading
from model.training.stage import Stage, trained_parameters
from model.training.stopping import Interrupted, Stopped, stop_requested, watch

Progress = Callable[[str, int, int], None]
Log = Callable[[dict[str, Any]], None]


def supervised_loss(network: Network, batch: Batch, denominator: float, chunk: int = 1024) -> Tensor:
    """Next-token loss on the response tokens of a batch (pre-training, fine-tuning).

    The auxiliary loss of a mixture of experts is weighted as the micro-batch is in the optimiser step.
    """
    states, auxiliary = network.hidden(batch.inputs)
    loss = chunked_next_token_loss(
        states, network.head, batch.targets, batch.weights, denominator, chunk, calls=batch.loss_calls
    )
    if auxiliary is not None:
        loss = loss + auxiliary * (batch.weights.sum() / denominator)
    return loss


def supervised_stage(name: str, config: TrainingConfig) -> Stage:
    """The stage of next-token prediction on the response tokens."""
    loss = partial(supervised_loss, chunk=config.loss_chunk)
    return Stage(name, loss, trained_parameters(config))


def make_deterministic(threads: int) -> None:
    """Pin what decides the last bits of a sum."""
    # Without it every product of matrices on a GPU is refused in deterministic mode.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory that it has not written; filling every new tensor takes 3 to 6 % of a small step.
    torch.utils.deterministic.fill_uninitialized_memory = False


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed dropped paths and adapters' dropout: a function of (seed, step, rank), so that resuming needs no state."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + rank) % 2**63)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then cosine to ``min_learning_rate_ratio`` of the peak; ``step`` counts from 0."""
    warmup = math.ceil(config.warmup_ratio * config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    floor = config.min_learning_rate_ratio
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def no_log(_record: dict[str, Any]) -> None:
    """Keep no record of the steps."""


def train(
    network: Network,
    processor: Processor,
    rows: Sequence[Row],
    stage: Stage,
    config: TrainingConfig,
    state_dir: Path,
    progress: Progress,
    log: Log = no_log,
) -> TrainingState:
    """Train ``network`` in place; with several processes, every one of them calls this.

    A checkpoint in ``state_dir`` is taken up, and the losses after it are bit-identical to those of a run that was
    never stopped (same machine, same number of threads and processes). Another number of processes may take it up.

    Args:
        network: on the CPU, float32. With ``config.lora`` it holds the adapters afterwards.
        processor: of the network's family.
        rows: the dataset.
        stage: batches, loss and trained parameters.
        config: everything else.
        state_dir: survives a kill.
        progress: told of every step.
        log: given speed, memory and waiting of every step.

    Raises:
        InputError: a row cannot be used, or loss or gradient is not finite; the message names the rows.
        Stopped: SIGTERM came; a checkpoint is written if a step was done.
    """
    make_deterministic(config.threads)
    seed_step(config.seed, 0, 0)
    _choose_parameters(network, stage, config)
    network.train()
    set_attention(network, config.attention)
    checkpoint_activations(network.parts(), config.activation_checkpointing)
    packs = stage.packed or config.packing is not None
    packed = use_varlen_attention(*network.parts().language) if packs else nullcontext()
    compiled = compiled_layers(network.parts()) if config.compile else nullcontext()
    with packed, drop_path(network, config.drop_path_rate), compiled:
        run = _Run(network, processor, rows, stage, config, state_dir, log)
        state = run.state
        progress(stage.name, state.step, config.steps)
        with watch():
            try:
                for reading in run.reader.read(state.step, config.steps):
                    run.step(reading)
                    progress(stage.name, state.step, config.steps)
            except Interrupted:
                run.stop()
        run.engine.finish()
    checkpoint_activations(network.parts(), "none")
    network.requires_grad_(True)
    network.eval()
    return state


def _choose_parameters(network: Network, stage: Stage, config: TrainingConfig) -> None:
    if config.lora is not None:
        from model.training.lora import add_lora  # peft takes a second to import, and most runs do without

        add_lora(network, config.lora, seed=config.seed)
        return
    network.requires_grad_(False)
    for parameter in stage.parameters(network):
        parameter.requires_grad_(True)


class _Run:
    """One stage being trained: engine, reader and state, restored from a checkpoint where there is one."""

    def __init__(
        self,
        network: Network,
        processor: Processor,
        rows: Sequence[Row],
        stage: Stage,
        config: TrainingConfig,
        state_dir: Path,
        log: Log,
    ) -> None:
        self.stage, self.config, self.state_dir = stage, config, state_dir
        rank, ranks = world()
        # All ranks have to run the same modules equally often wherever running one is something they do together.
        self.together = ranks > 1
        self.reader = stage.source(rows, processor, config, ranks=ranks, rank=rank, blank=self.together)
        cost = step_cost(network)  # counted before anything divides the weights
        self.engine: Engine = make_engine(network, stage.loss, config, self.reader.micro_batches)
        if stage.prepare is not None:
            stage.prepare(self.engine, self.reader)
        self.state = load_checkpoint(state_dir, self.engine) or TrainingState()
        if self.state.step:
            self.reader.resume(self.state.packer)
            if stage.memory is not None:
                stage.memory.load(self.state.memory)
        self._kept = self.state.step
        self.metrics = TrainingMetrics(
            log, cost, self.engine.device, stage=stage.name, steps=config.steps, ranks=self.engine.ranks
        )

    def step(self, reading: Reading) -> None:
        """One update, its record, and a checkpoint where one is due.

        Raises:
            Stopped: a signal asked for it; the checkpoint is written.
        """
        state, config, engine = self.state, self.config, self.engine
        self.metrics.data_ready()
        rate = learning_rate(config, reading.step)
        seed_step(config.seed, reading.step, engine.rank)
        loss, norm = self._update(reading, rate)
        batches = reading.batches
        counts = {name: sum(getattr(batch, name) for batch in batches) for name in ("tokens", "positions", "units")}
        counts["rows"] = sum(len(batch.row_ids) for batch in batches)
        counts["targets"] = sum(len(batch.targets) for batch in batches)
        *totals, stopping = engine.sum([*counts.values(), stop_requested()])
        counts = {name: int(total) for name, total in zip(counts, totals, strict=True)}
        state.step, state.packer = reading.step + 1, reading.packer
        state.tokens += counts["tokens"]
        recorded: dict[str, Any] = {}
        if self.stage.memory is not None:
            recorded = self.stage.memory.step_done(engine.sum)
            state.memory = self.stage.memory.state()
        last = state.step == config.steps
        if last or state.step % config.log_every == 0:
            of_step = {"step": state.step, "loss": loss, "learning_rate": rate, "grad_norm": norm}
            state.history.append({**of_step, "tokens": state.tokens, **recorded})
        self.metrics.step_done(
            step=state.step, loss=loss, grad_norm=norm, learning_rate=rate, recorded=recorded, **counts
        )
        # The last step is kept too: a run killed while it scores or writes its model does not train again.
        if last or stopping or state.step % config.checkpoint_every == 0:
            self._keep()
        if stopping and not last:
            self.stop()

    def stop(self) -> NoReturn:
        """Between two steps, on all ranks.

        Raises:
            Stopped: always; there is a checkpoint of the last step, if one was done.
        """
        done, steps = self.state.step, self.config.steps
        if not done:
            raise Stopped(f"{self.stage.name} stopped before step 1 of {steps}")
        if done != self._kept:
            self._keep()
        raise Stopped(f"{self.stage.name} stopped after step {done} of {steps}; a checkpoint is written")

    def _keep(self) -> None:
        save_checkpoint(self.state_dir, self.engine, self.state)
        self._kept = self.state.step
        self.metrics.restart()

    def _update(self, reading: Reading, rate: float) -> tuple[float, float]:
        """Gradients of all micro-batches, then the optimiser; returns loss and gradient norm before clipping."""
        engine, batches = self.engine, reading.batches
        # The denominator spans all micro-batches and ranks; engines average gradients over ranks, hence their number.
        denominator = engine.sum([float(sum(float(batch.weights.sum()) for batch in batches))])[0] / engine.ranks
        if self.together:
            calls = engine.max([math.ceil(len(batch.targets) / self.config.loss_chunk) for batch in batches])
            for batch, number in zip(batches, calls, strict=True):
                batch.loss_calls = max(1, int(number))
        total, bad = 0.0, []
        for number, batch in enumerate(batches):
            loss = engine.backward(batch.to(engine.device), denominator, last=number == len(batches) - 1)
            if not math.isfinite(loss):
                bad += batch.row_ids
            total += loss
        # Summed before anybody stops: a rank whose own loss is fine stops too, and all of them before the update.
        total = engine.sum([total])[0] / engine.ranks
        if not math.isfinite(total):
            self._refuse("loss", total, reading.step, bad)
        norm = engine.step(rate)
        if not math.isfinite(norm):
            self._refuse(
                "norm of the gradient", norm, reading.step, [row for batch in batches for row in batch.row_ids]
            )
        return total, norm

    def _refuse(self, name: str, value: float, step: int, rows: Sequence[str]) -> None:
        if self.together:
            # All ranks come here, and one of them is heard: each has to know the rows of the others.
            of_ranks: list[Any] = [None] * self.engine.ranks
            torch.distributed.all_gather_object(of_ranks, list(rows))
            rows = [row for others in of_ranks for row in others]
        more = ", ..." if len(rows) > 8 else ""
        raise InputError(f"{self.stage.name}: {name} is {value} at step {step}; rows {', '.join(rows[:8])}{more}")
