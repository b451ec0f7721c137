"""Visual consistency learning: rows shown twice, to a frozen reference in full and to the policy compressed.

Source: InternVL3.5 (arXiv 2508.18265), section 2.3; model/objectives/vico.py has the formula, docs/flash.md what the
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

from model.data.errors import InputError
from model.data.schema import Row
from model.families.interface import Inputs, Network, Processor, Sample
from model.flash.compression import tiles_per_image
from model.flash.network import FlashModel
from model.flash.processor import FlashProcessor
from model.objectives.config import COMPRESSED_XI, VicoObjective
from model.objectives.vico import consistency_loss, consistency_scores
from model.training.attention import set_attention, use_varlen_attention
from model.training.batches import Batch
from model.training.config import TrainingConfig
from model.training.reader import BatchReader, Collate, Drawn, Lay
from model.training.stage import MakeSource, Stage, SumFunction

Draw = Literal["image", "mixed", "tile"]


class FrozenReference:
    """A second network that never changes and shows every tile in full.

    Every process holds all of it, under ZeRO too.

    Args:
        network: on the CPU; nothing else uses it from now on.
        config: of the stage; its attention is used.
    """

    def __init__(self, network: Network, config: TrainingConfig) -> None:
        self._network = network.requires_grad_(False).eval()
        set_attention(self._network, config.attention)

    @property
    def head(self) -> nn.Module:
        """Hidden states to logits."""
        return self._network.head

    @torch.no_grad()
    def hidden(self, inputs: Inputs, policy: Network) -> Tensor:
        """Final hidden states [M, D] at the kept positions, on the device and in the precision of ``policy``."""
        weight = next(policy.parameters())
        self._network.to(device=inputs.ids.device, dtype=weight.dtype)
        if inputs.cu_seqlens is None:
            return self._network.hidden(inputs).states
        with use_varlen_attention(*self._network.parts().language):
            return self._network.hidden(inputs).states


@dataclass
class ConsistencyBatch(Batch):
    """A micro-batch as the policy sees it, weighted so that a sample counts once, and as the reference does.

    Attributes:
        reference: the same samples with all visual tokens. Its M kept positions stand before the same response tokens.
        compressed: [M], True for tokens of a sample of which an image is compressed.
    """

    reference: Inputs | None = None
    compressed: Tensor | None = None


def require_flash(network: Network, processor: Processor, step: str) -> tuple[FlashModel, FlashProcessor]:
    """The same, known to be of the family that has a second projector.

    Raises:
        InputError: it is of another family.
    """
    if not isinstance(network, FlashModel) or not isinstance(processor, FlashProcessor):
        family = network.config.model_type
        raise InputError(f"{step}: only InternVL models can compress tiles; the model given is of the family {family}")
    return network, processor


def tiles_of(processor: FlashProcessor, sample: Sample) -> list[int]:
    """Tiles of each image of a sample, in order; a frame of a video is an image of one tile."""
    return tiles_per_image(
        sample.input_ids, image_token_id=processor.image_token_id, rows_per_tile=processor.rows_per_tile
    )


def draw_compressed(tiles: Sequence[int], xi: Sequence[float], key: str, draw: Draw = "image") -> np.ndarray:
    """Which tiles are compressed [N].

    Args:
        tiles: of each image.
        xi: tokens per patch to draw from, uniformly.
        key: what the draw is a function of.
        draw: ``image`` draws one xi for all tiles of an image, ``mixed`` one for each tile in half of the images,
            ``tile`` one for each tile of all.
    """
    generator = random.Random(key)
    drawn: list[bool] = []
    for count in tiles:
        apart = draw == "tile" or (draw == "mixed" and generator.random() < 0.5)
        drawn += [_compressed(generator, xi) for _ in range(count)] if apart else [_compressed(generator, xi)] * count
    return np.asarray(drawn, bool)


def _compressed(generator: random.Random, xi: Sequence[float]) -> bool:
    return generator.choice(xi) == COMPRESSED_XI


def consistency_batches(processor: FlashProcessor, xi: Sequence[float], seed: int, draw: Draw = "image") -> Collate:
    """What makes a ``ConsistencyBatch`` of samples."""

    def collate(samples: Sequence[Sample], drawn: Sequence[Drawn], lay: Lay) -> ConsistencyBatch:
        chosen = [
            draw_compressed(tiles_of(processor, sample), xi, f"{seed}/xi/{row.step}/{row.index}/{row.place}", draw)
            for sample, row in zip(samples, drawn, strict=True)
        ]
        full = lay(samples)
        seen = lay([processor.compress(sample, tiles) for sample, tiles in zip(samples, chosen, strict=True)])
        # Nothing but placeholders left the sequences, and none of them is a response token.
        assert torch.equal(seen.targets, full.targets)
        any_M = np.repeat([bool(tiles.any()) for tiles in chosen], [response_tokens(sample) for sample in samples])
        return ConsistencyBatch(**vars(seen), reference=full.inputs, compressed=torch.from_numpy(any_M))

    return collate


def response_tokens(sample: Sample) -> int:
    """Tokens of a sample that carry loss: the first token of all has no position before it."""
    return sum(sample.trained[1:])


def paired_source(collate: Collate, config: TrainingConfig) -> MakeSource:
    """A reader whose batches weight a token by 1 / N of its sample, as the paper's formula does."""
    own = config.model_copy(update={"loss_averaging": "sample"})

    def source(
        rows: Sequence[Row], processor: Processor, _config: TrainingConfig, *, ranks: int, rank: int, blank: bool
    ) -> BatchReader:
        return BatchReader(rows, processor, own, ranks=ranks, rank=rank, blank=blank, collate=collate)

    return source


class DivergenceRecord:
    """Mean divergence of a step's samples that are shown in full and of those that are not, for its record."""

    def __init__(self) -> None:
        self._sums = [0.0] * 4

    def note(self, batch: ConsistencyBatch, divergences_M: Tensor) -> None:
        """Add a micro-batch."""
        weighted = (divergences_M.detach() * batch.weights).double()
        for number, chosen in enumerate((~batch.compressed, batch.compressed)):
            self._sums[2 * number] += float(weighted[chosen].sum())
            self._sums[2 * number + 1] += float(batch.weights[chosen].sum())

    def step_done(self, sum_over_ranks: SumFunction) -> dict[str, Any]:
        """``divergence_full`` and ``divergence_compressed`` of the step, where it had such samples."""
        sums = sum_over_ranks(self._sums)
        self._sums = [0.0] * 4
        means = zip(("divergence_full", "divergence_compressed"), sums[::2], sums[1::2], strict=True)
        return {name: total / count for name, total, count in means if count}

    def state(self) -> dict[str, Any]:
        """Nothing outlives a step."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Nothing to put back."""


def visual_consistency_loss(
    network: Network,
    batch: ConsistencyBatch,
    denominator: float,
    *,
    reference: FrozenReference,
    record: DivergenceRecord,
    next_token_weight: float,
    chunk: int,
) -> Tensor:
    """The divergence of the policy from the reference on the response tokens of a batch, and what a mixture of experts
    adds, weighted as the micro-batch is in the optimiser step."""
    fixed = reference.hidden(batch.reference, network)
    states, auxiliary = network.hidden(batch.inputs)
    scores = consistency_scores(
        states, network.head, fixed, reference.head, batch.targets, chunk, calls=batch.loss_calls
    )
    record.note(batch, scores.divergences)
    loss = consistency_loss(scores, batch.weights, denominator, next_token_weight)
    return loss if auxiliary is None else loss + auxiliary * (batch.weights.sum() / denominator)


def all_but_router(network: Network) -> Iterable[nn.Parameter]:
    """What learns to answer from compressed tiles: everything; the router has no part in it."""
    return network.parts().parameters("vision", "projector", "compressed", "language")


def consistency_stage(
    reference: FrozenReference, processor: FlashProcessor, objective: VicoObjective, config: TrainingConfig
) -> Stage:
    """The whole model learns to be, on fewer visual tokens, what the reference is on all of them."""
    record = DivergenceRecord()
    loss = partial(
        visual_consistency_loss,
        reference=reference,
        record=record,
        next_token_weight=objective.next_token_weight,
        chunk=config.loss_chunk,
    )
    source = paired_source(consistency_batches(processor, objective.xi, config.seed, objective.draw), config)
    return Stage("vico", loss, all_but_router, source, record)
