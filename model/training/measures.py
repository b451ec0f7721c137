"""The two ways to measure what compression costs, side by side on the same tiles.

Per image, all tiles are compressed together and share one ratio. Per tile, one is compressed while the others stay.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from model.data.schema import Row
from model.flash.decisions import Decision, decide
from model.flash.network import FlashModel
from model.flash.processor import FlashProcessor
from model.training.batches import pad
from model.training.consistency import tiles_of
from model.training.reader import sample_of_row
from model.training.routing import RouterBatch, router_batch

_AT_ONCE = 8
"""Copies of a row, each with an intervention, that are measured together."""


@dataclass(frozen=True)
class MeasuredTiles:
    """N tiles with their ratios.

    Attributes:
        image: log r [N] of the image that the tile belongs to.
        tile: log r [N] of the tile alone.
        tiles: of that image [N].
        probability: the router's P(compress) [N].
    """

    image: np.ndarray
    tile: np.ndarray
    tiles: np.ndarray
    probability: np.ndarray

    def report(self, percentile: float, compress_above: float) -> dict[str, float]:
        """How the two measures label the tiles, each against its own percentile, and whether the router agrees.

        ``many`` is of images with more than one tile, where the measures can differ at all; left out where there are
        none. ``correlation`` is that of the ranks.
        """
        by_image, by_tile = (ratios < np.percentile(ratios, percentile) for ratios in (self.image, self.tile))
        routed = decide(self.probability, [len(self.probability)], Decision(absolute_threshold=compress_above))
        many = self.tiles > 1
        found = {
            "measures_tiles": float(len(self.tile)),
            "measures_image_compress_share": float(by_image.mean()),
            "measures_tile_compress_share": float(by_tile.mean()),
            "measures_agreement": float((by_image == by_tile).mean()),
            "measures_router_compress_share": float(routed.mean()),
            "measures_router_agreement_image": float((routed == by_image).mean()),
            "measures_router_agreement_tile": float((routed == by_tile).mean()),
        }
        if many.any():
            found["measures_agreement_many"] = float((by_image == by_tile)[many].mean())
        if np.ptp(self.image) > 0 and np.ptp(self.tile) > 0:
            ranks = [mean_ranks(ratios) for ratios in (self.image, self.tile)]
            found["measures_correlation"] = float(np.corrcoef(ranks)[0, 1])
        return found


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks [N] of ``values`` [N] from 0; equal ones share the mean of the ranks that they take (Spearman's)."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[places]


def measure_tiles(
    network: FlashModel,
    processor: FlashProcessor,
    ratios: Callable[[RouterBatch], Tensor],
    rows: Sequence[Row],
    progress: Callable[[str, int, int], None],
) -> MeasuredTiles:
    """Every image and every tile of ``rows``, one intervention at a time; rows without an image have none.

    Args:
        network: in evaluation mode.
        processor: of it.
        ratios: log r [S] of the samples of a batch, as ``measure_ratios`` gives them.
        rows: with answers.
        progress: told of every row.
    """
    network.eval()
    lay = partial(pad, averaging="sample", pad_id=processor.eos_token_id)
    found = [np.zeros((4, 0))]
    for done, row in enumerate(rows):
        sample = sample_of_row(processor, row)
        tiles = tiles_of(processor, sample)
        owner = np.repeat(np.arange(len(tiles)), tiles)
        choices = [owner == image for image in range(len(tiles))] + list(np.eye(len(owner), dtype=bool))
        measured = []
        for start in range(0, len(choices), _AT_ONCE):
            part = choices[start : start + _AT_ONCE]
            batch = router_batch(processor, [sample] * len(part), part, range(len(part)), lay)
            measured.append(ratios(batch.to(network.device)).cpu().numpy())
        if measured:
            log_r = np.concatenate(measured)
            with torch.no_grad():
                patches = network.patches(torch.from_numpy(sample.media["tiles"]))
                probability = network.compress_probabilities(patches).cpu().numpy()
            images = log_r[: len(tiles)][owner]
            found.append(np.stack([images, log_r[len(tiles) :], np.asarray(tiles)[owner], probability]))
        progress("measuring tiles", done + 1, len(rows))
    return MeasuredTiles(*np.concatenate(found, axis=1))
