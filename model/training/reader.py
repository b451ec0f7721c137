"""Rows to the micro-batches of every optimiser step, made one step ahead in a thread."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from model.data.errors import InputError
from model.data.schema import Row
from model.families.interface import Processor, Sample, Size
from model.training.batches import Batch, pack, pad
from model.training.config import TrainingConfig
from model.training.mixture import Mixture
from model.training.packing import Packer


class EpochOrder:
    """Row indices of an endless stream: a pure function of (seed, position), so resuming needs no state.

    Epoch after epoch is shuffled anew and laid end to end.
    """

    def __init__(self, rows: int, seed: int) -> None:
        if rows < 1:
            raise InputError("the dataset has no rows to train on")
        self.rows, self.seed = rows, seed
        # A packer's window may reach over the end of an epoch: two are kept.
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def at(self, position: int) -> int:
        """The row at a position of the stream (from 0)."""
        epoch, offset = divmod(position, self.rows)
        return int(self._epoch(epoch)[offset])

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.rows)


def row_order(rows: Sequence[Row], config: TrainingConfig) -> Callable[[int], int]:
    """Stream position to row index: shuffled epochs, or text-only and multimodal rows in the configured ratio.

    Raises:
        InputError: no rows, or none of a kind that the ratio asks for.
    """
    if config.text_to_multimodal is None:
        return EpochOrder(len(rows), config.seed).at
    kinds = [[i for i, row in enumerate(rows) if bool(row["media"]) == multimodal] for multimodal in (False, True)]
    names = ("text-only rows", "rows with media")
    mixture = Mixture([len(kind) for kind in kinds], config.text_to_multimodal, config.seed, names)

    def at(position: int) -> int:
        source, row = mixture.at(position)
        return kinds[source][row]

    return at


def sample_of_row(
    processor: Processor, row: Row, jpeg_quality: int | None = None, max_tokens: int | None = None
) -> Sample:
    """Prepare a row for training.

    Raises:
        InputError: a medium is broken, placeholders do not match, nothing carries loss, or the row is too long.
    """
    sample = processor.sample(row, jpeg_quality=jpeg_quality)
    if not any(sample.trained):
        raise InputError(f"row {row['id']}: no assistant answer to train on")
    if max_tokens is not None and len(sample.input_ids) > max_tokens:
        raise InputError(f"row {row['id']}: {len(sample.input_ids)} tokens; training.max_tokens is {max_tokens}")
    return sample


@dataclass(frozen=True)
class Reading:
    """The micro-batches of one optimiser step on this rank, and where the packer stands after it (None unpacked)."""

    step: int
    batches: list[Batch]
    packer: dict[str, Any] | None


class Drawn(NamedTuple):
    """Where a sample came from: the step, the index of its row, and its place in the order of the whole step, which is
    the same for any number of ranks. What is drawn for a sample is drawn from these and the seed."""

    step: int
    index: int
    place: int


Lay = Callable[[Sequence[Sample]], Batch]
"""Pads samples side by side or lays them end to end, as the configuration says."""


class Collate(Protocol):
    """Makes a micro-batch of samples; stages whose batches hold more than the samples bring their own."""

    def __call__(self, samples: Sequence[Sample], drawn: Sequence[Drawn], lay: Lay) -> Batch:
        """The micro-batch of ``samples``; ``drawn`` says where each of them came from."""


def as_they_are(samples: Sequence[Sample], _drawn: Sequence[Drawn], lay: Lay) -> Batch:
    """The samples laid, and nothing else."""
    return lay(samples)


class BatchReader:
    """Micro-batches of optimiser steps.

    Every rank plans the same steps and makes its own share of them: all ranks always have equally many micro-batches.

    Args:
        rows: the dataset.
        processor: of the model's family.
        config: batch, packing, mixture, averaging, seed.
        ranks, rank: this process takes every ``ranks``-th row or pack of a step, starting at ``rank``.
        blank: give a batch without media a blank visual item, so that all ranks run the same modules.
        collate: makes the micro-batches.

    Raises:
        InputError: the batch cannot be divided among the ranks.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        processor: Processor,
        config: TrainingConfig,
        *,
        ranks: int = 1,
        rank: int = 0,
        blank: bool = False,
        collate: Collate = as_they_are,
    ) -> None:
        if config.batch_size % ranks:
            raise InputError(f"training.batch_size {config.batch_size} is not a multiple of {ranks} processes")
        self.rows, self.processor, self.config = rows, processor, config
        self.ranks, self.rank, self._collate = ranks, rank, collate
        self._at = row_order(rows, config)
        self._blank = processor.blank_media() if blank else None
        self._sizes: dict[int, Size] = {}
        self._packer = None
        if config.packing is not None:
            self._packer = Packer(config.packing, self._size, self._at, lambda index: f"row {rows[index]['id']}")

    @property
    def micro_batches(self) -> int:
        """Micro-batches of this rank in every optimiser step."""
        share = self.config.batch_size // self.ranks
        return share if self._packer is not None else math.ceil(share / (self.config.micro_batch_size or share))

    def resume(self, packer: dict[str, Any] | None) -> None:
        """Continue after a step whose ``Reading.packer`` this is.

        Raises:
            InputError: it was written with another setting of packing.
        """
        if (packer is None) != (self._packer is None):
            raise InputError("the checkpoint was written with another setting of training.packing")
        if self._packer is not None:
            self._packer.load(packer)

    def read(self, first: int, last: int) -> Iterator[Reading]:
        """Steps ``first`` to ``last - 1``, in order."""
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            coming: Future[Reading] | None = pool.submit(self.reading, first) if first < last else None
            for step in range(first, last):
                reading = coming.result()
                coming = pool.submit(self.reading, step + 1) if step + 1 < last else None
                yield reading

    def reading(self, step: int) -> Reading:
        """One optimiser step; packed steps have to be asked for in order."""
        size, config = self.config.batch_size, self.config
        if self._packer is not None:
            packs = [self._packer.next() for _ in range(size)]
            starts = np.cumsum([0, *(len(rows) for rows in packs)]).tolist()
            lay = partial(pack, averaging=config.loss_averaging, blank=self._blank)
            batches = [
                self._collate(
                    self._measured(step, packs[number]),
                    [Drawn(step, row, starts[number] + i) for i, row in enumerate(packs[number])],
                    lay,
                )
                for number in range(self.rank, size, self.ranks)
            ]
            return Reading(step, batches, self._packer.state())
        drawn = [Drawn(step, self._at(step * size + place), place) for place in range(self.rank, size, self.ranks)]
        samples, micro = self._samples(step, [row.index for row in drawn]), config.micro_batch_size or size
        lay = partial(pad, averaging=config.loss_averaging, pad_id=self.processor.eos_token_id, blank=self._blank)
        batches = [
            self._collate(samples[start : start + micro], drawn[start : start + micro], lay)
            for start in range(0, len(samples), micro)
        ]
        return Reading(step, batches, None)

    def _measured(self, step: int, rows: Sequence[int]) -> list[Sample]:
        """Samples of the sizes that the packer was told, so that no pack exceeds its budgets.

        Raises:
            InputError: a row states another width, height or length of a medium than it has.
        """
        samples = self._samples(step, rows)
        for sample, row in zip(samples, rows, strict=True):
            if sample.size != self._size(row):
                told, found = self._size(row), sample.size
                raise InputError(
                    f"row {sample.row_id}: its media give {found.tokens} tokens and {found.units} visual units, but "
                    f"their stated sizes {told.tokens} and {told.units}"
                )
        return samples

    def _samples(self, step: int, rows: Sequence[int]) -> list[Sample]:
        return [self._sample(step, row) for row in rows]

    def _sample(self, step: int, index: int) -> Sample:
        config, quality = self.config, None
        if config.jpeg_quality is not None:
            # Drawn from (seed, step, row) alone, so that resuming draws the same.
            quality = random.Random(f"{config.seed}/{step}/{index}").randint(*config.jpeg_quality)
        return sample_of_row(self.processor, self.rows[index], quality, config.max_tokens)

    def _size(self, index: int) -> Size:
        if index not in self._sizes:
            self._sizes[index] = self.processor.measure(self.rows[index])
        return self._sizes[index]
