"""The one training loop: accelerate, AdamW, cosine schedule, checkpoints, exact resume."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from model.data.errors import InputError
from model.data.schema import Row
from model.flash.network import FlashModel
from model.flash.processor import FlashProcessor
from model.objectives.next_token import next_token_loss
from model.training.batches import Batch, BatchReader
from model.training.checkpoints import TrainingState, load_checkpoint, save_checkpoint
from model.training.config import TrainingConfig
from model.training.drop_path import drop_path

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Stage:
    """What differs between stages.

    Attributes:
        name: for progress and messages.
        loss: (model, batch, denominator) to the micro-batch's share of the step's loss.
        parameters: which parameters train.
    """

    name: str
    loss: Callable[[nn.Module, Batch, float], Tensor]
    parameters: Callable[[FlashModel], Iterable[nn.Parameter]]


def supervised_loss(model: nn.Module, batch: Batch, denominator: float) -> Tensor:
    """Next-token loss on the response tokens of a batch (pre-training, fine-tuning)."""
    logits = model(batch.ids, batch.mask, batch.tiles, batch.keep)
    return next_token_loss(logits, batch.targets, batch.weights, denominator)


def all_parameters(model: FlashModel) -> Iterable[nn.Parameter]:
    """Native training: everything learns."""
    return model.parameters()


def projector_parameters(model: FlashModel) -> Iterable[nn.Parameter]:
    """Warm-up: the projector alone learns."""
    return model.multi_modal_projector.parameters()


def supervised_stage(name: str, config: TrainingConfig) -> Stage:
    """The stage of a supervised configuration."""
    return Stage(name, supervised_loss, projector_parameters if config.train == "projector" else all_parameters)


def make_deterministic(threads: int, seed: int) -> None:
    """Pin what decides the last bits of a sum."""
    # Without it every product of matrices on a GPU is refused in deterministic mode.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then cosine to ``min_learning_rate_ratio`` of the peak; ``step`` counts from 0."""
    warmup = math.ceil(config.warmup_ratio * config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    floor = config.min_learning_rate_ratio
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; vectors (norms, biases, layer scales) do not decay."""
    trained = list(parameters)
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def train(
    model: FlashModel,
    processor: FlashProcessor,
    rows: Sequence[Row],
    stage: Stage,
    config: TrainingConfig,
    state_dir: Path,
    progress: Progress,
) -> TrainingState:
    """Train ``model`` in place.

    A checkpoint in ``state_dir`` is taken up, and the losses after it are bit-identical to those of a run that was
    never stopped (same machine, same number of threads).

    Raises:
        InputError: a row cannot be used, or loss or gradient is not finite; the message names the rows.
    """
    make_deterministic(config.threads, config.seed)
    run = _Run(model, processor, rows, stage, config, state_dir)
    state = run.state
    progress(stage.name, state.step, config.steps)
    with drop_path(model.vision_tower, config.drop_path_rate):
        for step, batches in run.reader.read(state.step, config.steps):
            run.step(step, batches)
            progress(stage.name, state.step, config.steps)
    run.accelerator.free_memory()
    model.requires_grad_(True)
    model.eval()
    return state


class _Run:
    """One stage being trained: model, optimiser, reader and state, restored from a checkpoint where there is one."""

    def __init__(
        self,
        model: FlashModel,
        processor: FlashProcessor,
        rows: Sequence[Row],
        stage: Stage,
        config: TrainingConfig,
        state_dir: Path,
    ) -> None:
        self.stage, self.config, self.state_dir = stage, config, state_dir
        precision = "bf16" if config.precision == "bfloat16" else "no"
        # accelerate keeps the first precision of a process for good; stages of one process may differ in it.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
        model.requires_grad_(False)
        trained = list(stage.parameters(model))
        for parameter in trained:
            parameter.requires_grad_(True)
        model.train()
        self.model = model
        # Moved to its device first: what the optimiser resumes with has to lie where the parameters lie.
        self.wrapped = self.accelerator.prepare(model)
        self.optimizer = make_optimizer(trained, config)
        self.state = load_checkpoint(state_dir, model, self.optimizer) or TrainingState()
        self.reader = BatchReader(
            rows,
            processor,
            batch_size=config.batch_size,
            micro_batch_size=config.micro_batch_size,
            averaging=config.loss_averaging,
            seed=config.seed,
            max_tokens=config.max_tokens,
            jpeg_quality=config.jpeg_quality,
            ranks=self.accelerator.num_processes,
            rank=self.accelerator.process_index,
        )

    def step(self, step: int, batches: list[Batch]) -> None:
        """One update, its record, and a checkpoint where one is due."""
        state, config = self.state, self.config
        rate = learning_rate(config, step)
        loss, norm = self._update(step, batches, rate)
        state.step = step + 1
        state.tokens += int(_total(self.accelerator, sum(batch.tokens for batch in batches)))
        last = state.step == config.steps
        if last or state.step % config.log_every == 0:
            state.history.append(
                {"step": state.step, "loss": loss, "learning_rate": rate, "grad_norm": norm, "tokens": state.tokens}
            )
        # The last step is kept too: a run killed while it scores or writes its model does not train again.
        if (last or state.step % config.checkpoint_every == 0) and self.accelerator.is_main_process:
            save_checkpoint(self.state_dir, self.model, self.optimizer, state)

    def _update(self, step: int, batches: list[Batch], rate: float) -> tuple[float, float]:
        """Gradients of all micro-batches, then the optimiser; returns loss and gradient norm before clipping."""
        accelerator = self.accelerator
        ranks = accelerator.num_processes
        # The denominator spans all micro-batches and ranks; DDP averages gradients over ranks, hence their number.
        denominator = _total(accelerator, sum(float(batch.weights.sum()) for batch in batches)) / ranks
        total = 0.0
        for number, batch in enumerate(batches):
            batch = _to_device(batch, accelerator.device)
            synchronise = ranks == 1 or number == len(batches) - 1
            with nullcontext() if synchronise else accelerator.no_sync(self.wrapped):
                with accelerator.autocast():
                    loss = self.stage.loss(self.wrapped, batch, denominator)
                accelerator.backward(loss)
            total += loss.item()
        total = _total(accelerator, total) / ranks
        self._check_finite("loss", total, step, batches)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = float(accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config.grad_clip))
        self._check_finite("norm of the gradient", norm, step, batches)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm

    def _check_finite(self, name: str, value: float, step: int, batches: list[Batch]) -> None:
        if not math.isfinite(value):
            rows = [row for batch in batches for row in batch.row_ids]
            raise InputError(f"{self.stage.name}: {name} is {value} at step {step}; rows {', '.join(rows[:8])}, ...")


def _total(accelerator: Accelerator, value: float) -> float:
    """Sum over ranks."""
    if accelerator.num_processes == 1:
        return value
    kind = torch.float64
    return accelerator.reduce(torch.tensor(value, dtype=kind, device=accelerator.device), "sum").item()


def _to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    moved = {name: getattr(batch, name).to(device) for name in ("ids", "mask", "tiles", "keep", "targets", "weights")}
    return Batch(**moved, row_ids=batch.row_ids)
