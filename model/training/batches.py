"""Rows to batches: a stateless order, collation, and a prefetching reader."""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.data.errors import InputError
from model.data.schema import Row
from model.flash.images import reencode_jpeg, row_images
from model.flash.processor import FlashProcessor, Sample
from model.objectives.next_token import Averaging, token_weight


@dataclass
class Batch:
    """A padded micro-batch of B samples, T tokens and N tiles; M positions carry loss.

    Attributes:
        ids, mask: [B, T], padded on the right.
        tiles: uint8 [N, S, S, 3] of all images in order.
        keep: [B, T] True at the positions whose logits are needed (one before each target).
        targets, weights: [M], row-major like ``keep``.
        row_ids: for messages.
    """

    ids: Tensor
    mask: Tensor
    tiles: Tensor
    keep: Tensor
    targets: Tensor
    weights: Tensor
    row_ids: list[str]

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return int(self.mask.sum())


class EpochOrder:
    """Row indices of every optimiser step: a pure function of (seed, step), so resuming needs no state.

    Epoch after epoch is shuffled anew and laid end to end; step k takes the k-th stretch of ``batch_size``.
    """

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        if rows < 1:
            raise InputError("the dataset has no rows to train on")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def step(self, step: int) -> list[int]:
        """Row indices of optimiser step ``step`` (from 0)."""
        return [self._at(position) for position in range(step * self.batch_size, (step + 1) * self.batch_size)]

    def _at(self, position: int) -> int:
        epoch, offset = divmod(position, self.rows)
        if epoch != self._epoch:
            self._order = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
            self._epoch = epoch
        return int(self._order[offset])


def sample_of_row(
    processor: FlashProcessor, row: Row, jpeg_quality: int | None = None, max_tokens: int | None = None
) -> Sample:
    """Decode, tile and tokenise a row.

    Raises:
        InputError: a medium is broken, placeholders do not match, nothing carries loss, or the row is too long.
    """
    images = row_images(row)
    if jpeg_quality is not None:
        images = [reencode_jpeg(image, jpeg_quality) for image in images]
    try:
        sample = processor.sample(row["messages"], images, row_id=row["id"])
    except InputError as error:
        raise InputError(f"row {row['id']}: {error}") from error
    if not any(sample.trained):
        raise InputError(f"row {row['id']}: no assistant answer to train on")
    if max_tokens is not None and len(sample.input_ids) > max_tokens:
        raise InputError(f"row {row['id']}: {len(sample.input_ids)} tokens; training.max_tokens is {max_tokens}")
    return sample


def collate(samples: Sequence[Sample], averaging: Averaging, pad_id: int) -> Batch:
    """Pad samples on the right and lay out targets and weights."""
    width = max(len(sample.input_ids) for sample in samples)
    ids = torch.full((len(samples), width), pad_id)
    mask = torch.zeros_like(ids)
    target = torch.zeros((len(samples), width), dtype=torch.bool)
    weight = torch.zeros((len(samples), width))
    for i, sample in enumerate(samples):
        length = len(sample.input_ids)
        ids[i, :length] = torch.tensor(sample.input_ids)
        mask[i, :length] = 1
        target[i, :length] = torch.tensor(sample.trained)
        weight[i] = token_weight(sum(sample.trained), averaging)
    # The first token has no position before it; the system turn stands there, so it is never a target.
    target[:, 0] = False
    keep = torch.zeros_like(target)
    keep[:, :-1] = target[:, 1:]
    tiles = torch.from_numpy(np.concatenate([sample.tiles for sample in samples]))
    return Batch(ids, mask, tiles, keep, ids[target], weight[target], [sample.row_id for sample in samples])


class BatchReader:
    """Micro-batches of optimiser steps, made one step ahead in a thread.

    Args:
        rows: the dataset.
        ranks, rank: this process takes every ``ranks``-th row of a step, starting at ``rank``.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        processor: FlashProcessor,
        *,
        batch_size: int,
        micro_batch_size: int | None,
        averaging: Averaging,
        seed: int,
        max_tokens: int,
        jpeg_quality: tuple[int, int] | None,
        ranks: int = 1,
        rank: int = 0,
    ) -> None:
        if batch_size % ranks:
            raise InputError(f"training.batch_size {batch_size} is not a multiple of {ranks} processes")
        self.rows, self.processor = rows, processor
        self.order = EpochOrder(len(rows), batch_size, seed)
        self.micro = micro_batch_size or batch_size
        self.averaging, self.seed = averaging, seed
        self.max_tokens, self.jpeg_quality = max_tokens, jpeg_quality
        self.ranks, self.rank = ranks, rank

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of one optimiser step."""
        indices = self.order.step(step)[self.rank :: self.ranks]
        samples = [self._sample(step, index) for index in indices]
        pad = self.processor.eos_token_id
        return [
            collate(samples[start : start + self.micro], self.averaging, pad)
            for start in range(0, len(samples), self.micro)
        ]

    def _sample(self, step: int, index: int) -> Sample:
        quality = None
        if self.jpeg_quality is not None:
            # Drawn from (seed, step, row) alone, so that resuming draws the same.
            quality = random.Random(f"{self.seed}/{step}/{index}").randint(*self.jpeg_quality)
        return sample_of_row(self.processor, self.rows[index], quality, self.max_tokens)

    def read(self, first: int, last: int) -> Iterator[tuple[int, list[Batch]]]:
        """(step, micro-batches) for steps ``first`` to ``last - 1``."""
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            coming: Future[list[Batch]] | None = pool.submit(self.batches, first) if first < last else None
            for step in range(first, last):
                batches = coming.result()
                coming = pool.submit(self.batches, step + 1) if step + 1 < last else None
                yield step, batches
