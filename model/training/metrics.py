"""What every optimiser step costs: throughput, MFU, memory, waiting for data, padding.

Wall-clock values differ from run to run. They go to a sink, and never into the history of a result or a payload.
"""

import resource
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from model.training.flops import StepCost, peak_flops


class TrainingMetrics:
    """Clocks the steps of one stage and hands ``sink`` one record for each.

    The loop calls ``data_ready`` when the batches of a step are there and ``step_done`` when the step is over; a clock
    runs from the end of the last step (at first from here). Counts are over all ranks, times and memory of this one.

    Args:
        sink: takes each record (``StepContext.metrics``).
        cost: of the network, for MFU; None where it is not known.
        device: this rank's.
        stage: name of the stage.
        steps: optimiser steps that it has.
        ranks: processes that train together.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        sink: Callable[[dict[str, Any]], None],
        cost: StepCost | None,
        device: torch.device,
        *,
        stage: str,
        steps: int,
        ranks: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._sink, self._cost, self._device = sink, cost, device
        self._stage, self._steps, self._clock = stage, steps, clock
        peak = peak_flops(device)
        self._peak = peak * ranks if peak else None
        self._began = self._ready = clock()

    def data_ready(self) -> None:
        """The batches of the coming step are there; what passed since the last step was waiting."""
        self._ready = self._clock()

    def step_done(
        self,
        *,
        step: int,
        loss: float,
        grad_norm: float,
        learning_rate: float,
        tokens: int,
        positions: int,
        units: int,
        rows: int,
        targets: int | None = None,
        recorded: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """The step is over. Call it after something that waited for the device, such as ``loss.item()``.

        Args:
            step: number of the step, the first is 1.
            loss: over the whole step.
            grad_norm: before clipping.
            learning_rate: of this step.
            tokens: real tokens, without padding.
            positions: what the forward passes were long: B x T of padded batches, the length of packs.
            units: visual units.
            rows: samples.
            targets: positions that carry loss, for which the head ran; all tokens when None.
            recorded: what the stage itself has to say of the step.
        """
        now = self._clock()
        seconds = max(now - self._began, 1e-9)
        work = {"tokens": tokens, "targets": tokens if targets is None else targets, "units": units, "rows": rows}
        mfu = None
        if self._cost is not None and self._peak is not None:
            mfu = self._cost.step(**work) / (seconds * self._peak)
        self._sink(
            {
                "stage": self._stage,
                "step": step,
                "steps": self._steps,
                "loss": loss,
                "grad_norm": grad_norm,
                "learning_rate": learning_rate,
                **work,
                "seconds": seconds,
                "tokens_per_second": tokens / seconds,
                "mfu": mfu,
                "memory_bytes": peak_memory(self._device),
                "data_wait_seconds": max(self._ready - self._began, 0.0),
                "padding_share": 1 - tokens / positions if positions else 0.0,
                **recorded,
            }
        )
        self._began = self._ready = now

    def restart(self) -> None:
        """Start the clock here: what passed since the last step (a checkpoint was written) is no step's."""
        self._began = self._ready = self._clock()


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process ever held: allocated on a GPU, or resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
