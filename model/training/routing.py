"""Training of the Visual Resolution Router: how much compression costs is measured, and the router learns where.

Source: InternVL3.5 (arXiv 2508.18265), section 2.3; model/objectives/router.py has the labels, docs/flash.md what the
paper leaves open.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from model.families.interface import Inputs, Sample
from model.flash.network import FlashModel
from model.flash.processor import FlashProcessor
from model.objectives.config import RouterObjective
from model.objectives.log_probability import segment_means
from model.objectives.router import COMPRESS, RatioWindow, labels, log_ratios, router_loss
from model.objectives.vico import consistency_scores
from model.training.batches import Batch
from model.training.config import TrainingConfig
from model.training.consistency import FrozenReference, paired_source, response_tokens, tiles_of
from model.training.engine import world
from model.training.reader import Collate, Drawn, Lay
from model.training.stage import Stage, SumFunction

Measure = Literal["image", "tile"]
UNUSED = ("pooling.attn3.", "pooling.attn4.", "pooling.norm3.", "pooling.norm4.")
"""Of the released router: in its checkpoints, but in no forward pass."""


@dataclass
class RouterBatch(Batch):
    """A micro-batch of S samples in full, and the same with one image or tile of each compressed.

    ``weights`` are ones, as many as labelled tiles.

    Attributes:
        compressed: the same samples; their M kept positions stand before the same response tokens.
        lengths: response tokens of each sample.
        places: where each sample stands in the step.
        tiles: indices of the labelled tiles among those of the batch.
        owners: the sample of each of them.
    """

    compressed: Inputs | None = None
    lengths: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    tiles: Tensor | None = None
    owners: Tensor | None = None


def draw_intervention(tiles: Sequence[int], measure: Measure, key: str) -> np.ndarray:
    """Which tiles of a sample are compressed [N]: those of one image, or one of all; none where it has none.

    Args:
        tiles: of each image.
        measure: what is compressed.
        key: what the draw is a function of.
    """
    count = sum(tiles)
    chosen = np.zeros(count, bool)
    if not count:
        return chosen
    generator = random.Random(key)
    if measure == "tile":
        chosen[generator.randrange(count)] = True
    else:
        image = generator.randrange(len(tiles))
        start = sum(tiles[:image])
        chosen[start : start + tiles[image]] = True
    return chosen


def router_batch(
    processor: FlashProcessor, samples: Sequence[Sample], chosen: Sequence[np.ndarray], places: Sequence[int], lay: Lay
) -> RouterBatch:
    """Samples in full and with the tiles compressed that ``chosen`` names (bool [N] of each sample)."""
    full = lay(samples)
    less = lay([processor.compress(sample, tiles) for sample, tiles in zip(samples, chosen, strict=True)])
    assert torch.equal(full.targets, less.targets)
    counts = [int(tiles.sum()) for tiles in chosen]
    given = vars(full) | {"weights": torch.ones(sum(counts))}
    return RouterBatch(
        **given,
        compressed=less.inputs,
        lengths=tuple(response_tokens(sample) for sample in samples),
        places=tuple(places),
        tiles=torch.from_numpy(np.concatenate(chosen).nonzero()[0]),
        owners=torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts)),
    )


def router_batches(processor: FlashProcessor, measure: Measure, seed: int) -> Collate:
    """What makes a ``RouterBatch`` of samples, with an intervention drawn for each."""

    def collate(samples: Sequence[Sample], drawn: Sequence[Drawn], lay: Lay) -> RouterBatch:
        chosen = [
            draw_intervention(tiles_of(processor, sample), measure, f"{seed}/tile/{row.step}/{row.index}/{row.place}")
            for sample, row in zip(samples, drawn, strict=True)
        ]
        return router_batch(processor, samples, chosen, [row.place for row in drawn], lay)

    return collate


@torch.no_grad()
def measure_ratios(
    network: FlashModel, batch: RouterBatch, reference: FrozenReference, floor: float, chunk: int
) -> Tensor:
    """log r [S] of the samples of a batch, float64: what their interventions cost.

    Args:
        network: in evaluation mode.
        batch: the samples, in full and with their interventions.
        reference: what both are held against.
        floor: of the losses.
        chunk: positions whose logits exist at the same time.
    """
    fixed = reference.hidden(batch.inputs, network)

    def losses(inputs: Inputs) -> Tensor:
        states = network.hidden(inputs).states
        head = (states, network.head, fixed, reference.head, batch.targets, chunk, batch.loss_calls)
        return segment_means(consistency_scores(*head).divergences, batch.lengths)

    return log_ratios(losses(batch.compressed), losses(batch.inputs), floor)


class RatioMemory:
    """The window of ratios, filled after every step with those of all ranks in the order of the step.

    The labels of a step come from the ratios of the steps before, so no rank waits for another within a step, and any
    number of ranks gives the same labels. The first step finds an empty window and labels nothing.

    Args:
        objective: size of the window, and percentile.
    """

    def __init__(self, objective: RouterObjective) -> None:
        self.window = RatioWindow(objective.window, objective.percentile)
        self._ratios: list[tuple[int, float]] = []
        self._counts = np.zeros(3)

    def note_ratios(self, places: Sequence[int], ratios: Sequence[float]) -> None:
        """Add the samples of a micro-batch."""
        self._ratios += zip(places, ratios, strict=True)

    def note_labels(self, logits_N2: Tensor, labels_N: Tensor) -> None:
        """Add the labelled tiles of a micro-batch."""
        right = logits_N2.detach().argmax(-1) == labels_N
        self._counts += [len(labels_N), int((labels_N == COMPRESS).sum()), int(right.sum())]

    def step_done(self, sum_over_ranks: SumFunction) -> dict[str, Any]:
        """Of the step: ``threshold`` of log r and the labelled tiles' ``compress_share`` (label) and ``agreement`` of
        the router; ``log_ratio``, the mean of the ratios that were measured."""
        record = {} if self.window.threshold is None else {"threshold": self.window.threshold}
        labelled, compressed, right = sum_over_ranks(self._counts.tolist())
        if labelled:
            record |= {"compress_share": compressed / labelled, "agreement": right / labelled}
        ratios = self._gather(sum_over_ranks)
        if ratios:
            record["log_ratio"] = sum(ratios) / len(ratios)
        self.window.add(ratios)
        self._ratios, self._counts = [], np.zeros(3)
        return record

    def _gather(self, sum_over_ranks: SumFunction) -> list[float]:
        """The ratios of all ranks in the order of the step. Ranks can only add, so each fills slots of its own."""
        rank, ranks = world()
        counts = [int(n) for n in sum_over_ranks([len(self._ratios) * (rank == other) for other in range(ranks)])]
        slots = np.zeros((sum(counts), 2))
        slots[sum(counts[:rank]) : sum(counts[: rank + 1])] = np.reshape(self._ratios, (-1, 2))
        together = np.reshape(sum_over_ranks(slots.ravel().tolist()), (-1, 2))
        return together[np.argsort(together[:, 0], kind="stable"), 1].tolist()

    def state(self) -> dict[str, Any]:
        """The window."""
        return self.window.state()

    def load(self, state: dict[str, Any]) -> None:
        """Put the window back."""
        self.window.load(state)


def routing_loss(
    network: FlashModel,
    batch: RouterBatch,
    denominator: float,
    *,
    reference: FrozenReference,
    memory: RatioMemory,
    objective: RouterObjective,
    chunk: int,
) -> Tensor:
    """Measure the interventions of a batch, and hold the router's opinion of their tiles against the labels."""
    # What is frozen is measured as it will answer: without dropout.
    network.eval()
    ratios_S = measure_ratios(network, batch, reference, objective.floor, chunk)
    measured = sorted(set(batch.owners.tolist()))
    memory.note_ratios([batch.places[i] for i in measured], ratios_S[measured].tolist())
    # Of a broken network a ratio is no number, which lies under no threshold: the loss has to say it.
    undefined = 0 * ratios_S.sum().float()
    network.router.train()
    threshold, tiles_NSSC = memory.window.threshold, batch.inputs.media.get("tiles")
    if tiles_NSSC is None:
        return batch.weights.sum() + undefined  # rows without an image
    learning = threshold is not None and len(batch.tiles) > 0
    with torch.no_grad():
        patches_NPD = network.patches(tiles_NSSC[batch.tiles] if learning else tiles_NSSC[:1])
    logits_N2 = network.router(patches_NPD)
    if not learning:
        return 0 * logits_N2.sum() + undefined
    labels_N = labels(ratios_S[batch.owners], threshold)
    memory.note_labels(logits_N2, labels_N)
    return router_loss(logits_N2, labels_N, denominator) + undefined


def router_parameters(network: FlashModel) -> Iterable[nn.Parameter]:
    """The router alone, without the tensors that it carries but does not use."""
    return (p for name, p in network.router.named_parameters() if not name.startswith(UNUSED))


def routing_stage(
    reference: FrozenReference, processor: FlashProcessor, objective: RouterObjective, config: TrainingConfig
) -> Stage:
    """The router learns which tiles can be compressed; everything else is frozen."""
    memory = RatioMemory(objective)
    loss = partial(routing_loss, reference=reference, memory=memory, objective=objective, chunk=config.loss_chunk)
    source = paired_source(router_batches(processor, objective.measure, config.seed), config)
    return Stage("route", loss, router_parameters, source, memory)
