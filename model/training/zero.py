"""Training divided among processes by DeepSpeed ZeRO, stages 1 to 3 (arXiv 1910.02054)."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.families.interface import Network
from model.training.batches import Batch
from model.training.config import TrainingConfig
from model.training.engine import (
    LONGEST_WAIT,
    Evaluation,
    LossFunction,
    LossModule,
    Slot,
    make_optimizer,
    reduce_values,
)

if not torch.cuda.is_available():
    # It looks for its accelerator on import.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

_MOMENTS = ("exp_avg", "exp_avg_sq")


_MOST_IN_BUCKET = 200_000_000


def deepspeed_config(
    config: TrainingConfig, micro_batches: int, *, trained_parameters: int, hidden_size: int
) -> dict[str, Any]:
    """DeepSpeed's configuration for ours.

    Args:
        config: of the stage; ``config.zero`` is set.
        micro_batches: of one rank in an optimiser step.
        trained_parameters: their number of elements.
        hidden_size: of the language model.
    """
    # Buffers of this many elements are made whatever the model holds; the default takes 2 GB each.
    bucket = min(_MOST_IN_BUCKET, trained_parameters)
    zero: dict[str, Any] = {
        "stage": config.zero.stage,
        "contiguous_gradients": True,
        "overlap_comm": torch.cuda.is_available(),
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "stage3_prefetch_bucket_size": bucket // 4,
        # What is smaller than this is not worth a collective of its own.
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    if config.zero.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.zero.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": config.grad_clip,
        "bf16": {"enabled": config.precision == "bfloat16"},
        "zero_optimization": zero,
        # AdamW of torch, on the host too: the same updates as without ZeRO, and no compiler needed.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


class ZeroEngine:
    """DeepSpeed's engine. In bfloat16 the weights are bfloat16 and their masters float32."""

    def __init__(self, network: Network, loss: LossFunction, config: TrainingConfig, micro_batches: int) -> None:
        # On a CPU it would compile a collective of its own on first use; gloo needs no compiler on the machine.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if not torch.distributed.is_initialized():
            deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT)
        self.rank, self.ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._network = network
        self._trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._stage = config.zero.stage
        # DeepSpeed rounds all weights, and the masters with them: what it rounded is put back, the masters at once and
        # what does not train at the end.
        exact = {} if config.precision == "float32" else {n: p.detach().clone() for n, p in network.named_parameters()}
        self._frozen = {name: exact.pop(name) for name in list(exact) if name not in self._trained}
        settings = deepspeed_config(
            config,
            micro_batches,
            trained_parameters=sum(p.numel() for p in self._trained.values()),
            hidden_size=network.head.in_features,
        )
        self._engine, self._optimizer, *_ = deepspeed.initialize(
            model=LossModule(network, loss),
            optimizer=make_optimizer(network, config),
            config=settings,
            dist_init_required=False,
        )
        self.device = torch.device(self._engine.device)
        self._make_moments()
        for name, master in exact.items():
            self._set(self._trained[name], None, master)

    def backward(self, batch: Batch, denominator: float, *, last: bool) -> float:
        """Loss of one micro-batch, its gradient added; DeepSpeed counts itself which is the last."""
        loss = self._engine(batch, denominator)
        # The denominator spans the whole step: no further division by the number of micro-batches.
        self._engine.backward(loss, scale_wrt_gas=False)
        if not last:
            self._engine.step()
        return loss.item()

    def step(self, learning_rate: float) -> float:
        """Clip, update, forget the gradients; returns the norm before clipping."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    @torch.no_grad()
    def evaluate(self, wanted: Evaluation, batch: Batch) -> Tensor:
        """``wanted`` of the network, in evaluation mode and without gradients; every rank calls it equally often."""
        training = self._network.training
        self._engine.eval()
        try:
            # Through DeepSpeed's own module: its hooks gather the weights.
            return self._engine(batch.to(self.device), 1.0, wanted)
        finally:
            self._engine.train(training)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks."""
        return reduce_values(values, torch.distributed.ReduceOp.SUM, self.device)

    def max(self, values: Sequence[float]) -> list[float]:
        """Largest values over the ranks."""
        return reduce_values(values, torch.distributed.ReduceOp.MAX, self.device)

    def tensors(self) -> Iterator[Slot]:
        """The trained parameters with their moments, gathered one after the other."""
        for name, parameter in self._trained.items():
            moments = [safe_get_full_optimizer_state(parameter, key) for key in _MOMENTS]
            yield Slot(name, safe_get_full_fp32_param(parameter).detach(), *moments)

    def load(self, slots: Iterable[Slot], updates: int) -> None:
        """Put back what ``tensors`` gave, of any engine and number of processes, after ``updates`` updates."""
        for flat in self._flat_parameters():
            self._optimizer.optimizer.state[flat]["step"].fill_(updates)
        for slot in slots:
            parameter = self._trained[slot.name]
            self._set(parameter, None, slot.weight)
            for key in _MOMENTS:
                moment = getattr(slot, key)
                self._set(parameter, key, torch.zeros_like(slot.weight) if moment is None else moment)

    def finish(self) -> None:
        """Gather the weights in float32 and put plain parameters into the network's modules."""
        whole: dict[int, nn.Parameter] = {}
        for name, parameter in self._network.named_parameters():
            value = self._frozen[name] if name in self._frozen else self._whole(parameter)
            whole[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
        self._engine.destroy()
        for module in self._network.modules():
            plain = {name: None if p is None else whole[id(p)] for name, p in module._parameters.items()}
            module._parameters = plain
        self._network.float()

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        if parameter.requires_grad:
            return safe_get_full_fp32_param(parameter).detach().clone()
        with deepspeed.zero.GatheredParameters(parameter, enabled=self._stage == 3):
            return parameter.detach().clone().float()

    def _flat_parameters(self) -> list[Tensor]:
        """The float32 masters that the optimiser really updates: this rank's part of them."""
        if self._stage == 3:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return list(self._optimizer.single_partition_of_fp32_groups)

    def _make_moments(self) -> None:
        """Give every master its moments now.

        AdamW makes them at its first update, one group of parameters after the other; DeepSpeed looks for all of them
        after the first group, and never again.
        """
        for flat in self._flat_parameters():
            moments = {key: torch.zeros_like(flat) for key in _MOMENTS}
            self._optimizer.optimizer.state[flat] = {"step": torch.tensor(0.0, device=flat.device), **moments}
        if self._stage != 3:
            self._optimizer._lazy_init_hp_params_optimizer_state()

    @torch.no_grad()
    def _set(self, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
        """Lay this rank's part of ``value`` into the master (key None) or a moment of a parameter."""
        if self._stage != 3:
            parameter.set_full_hp_param(value.to(self.device), key)
            if key is None:
                parameter.data.copy_(value)
            return
        part = parameter._z3_optimizer._get_fp32_opt_state_partition(parameter, False, key)[0]
        # The last rank's part may be longer than what is left of the parameter: DeepSpeed fills it up with zeros.
        start = min(self.rank * part.numel(), value.numel())
        mine = value.flatten()[start : start + part.numel()]
        part.zero_()
        part[: mine.numel()].copy_(mine)
        if key is None:
            parameter.ds_tensor.view(-1)[: mine.numel()].copy_(mine)
