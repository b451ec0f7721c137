"""A first start for the second projector: its rows are fitted to the means of the rows that they stand for.

The paper does not say how the second projector is initialised. This is distillation inside the vision half, on tiles
without labels: no language model runs, so a step costs a fraction of one of visual consistency learning.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.data.schema import Row
from model.families.interface import Processor, Sample
from model.flash.decisions import COMPRESSION
from model.flash.network import FlashModel
from model.training.batches import Batch
from model.training.config import TrainingConfig
from model.training.reader import BatchReader, Drawn, Lay
from model.training.stage import Stage


def pooled_rows(rows_NRD: Tensor) -> Tensor:
    """Means of 2 x 2 neighbours of tiles' rows in their square grids: [N, R, D] to [N, R / 4, D]."""
    side = round(rows_NRD.shape[1] ** 0.5)
    grid_NDHW = rows_NRD.transpose(1, 2).unflatten(2, (side, side))
    return F.avg_pool2d(grid_NDHW, round(COMPRESSION**0.5)).flatten(2).transpose(1, 2)


def warmup_loss(network: FlashModel, batch: Batch, denominator: float) -> Tensor:
    """Mean squared error of the compressed rows of a batch's tiles; a tile counts once."""
    tiles_NSSC = batch.inputs.media.get("tiles")
    if tiles_NSSC is None:
        return batch.weights.sum()  # rows without an image
    with torch.no_grad():
        patches_NPD = network.patches(tiles_NSSC)
        wanted_NRD = pooled_rows(network.project(patches_NPD).unflatten(0, (len(tiles_NSSC), -1)))
    found_RD = network.project(patches_NPD, torch.ones(len(tiles_NSSC), dtype=torch.bool))
    errors_N = (found_RD.unflatten(0, (len(tiles_NSSC), -1)) - wanted_NRD).float().square().mean((1, 2))
    # A blank tile makes a rank run what the others run, and teaches nothing.
    return errors_N[: len(batch.weights)].sum() / denominator + 0 * errors_N.sum()


def _collate(samples: Sequence[Sample], _drawn: Sequence[Drawn], lay: Lay) -> Batch:
    batch = lay(samples)
    batch.weights = torch.ones(batch.units)
    return batch


def _source(
    rows: Sequence[Row], processor: Processor, config: TrainingConfig, *, ranks: int, rank: int, blank: bool
) -> BatchReader:
    return BatchReader(rows, processor, config, ranks=ranks, rank=rank, blank=blank, collate=_collate)


def _second_projector(network: FlashModel) -> Iterable[nn.Parameter]:
    return network.parts().parameters("compressed")


def warmup_stage() -> Stage:
    """The second projector alone learns to pool; the rows' answers are not looked at."""
    return Stage("vico-projector", warmup_loss, _second_projector, _source)
