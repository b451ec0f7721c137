"""The text of a sample whose tiles were routed: fewer placeholders for compressed tiles. Imports no torch."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from model.families.interface import Sample
from model.flash.decisions import COMPRESSION


def tiles_per_image(input_ids: Sequence[int], *, image_token_id: int, rows_per_tile: int) -> list[int]:
    """Tiles of each image of a sample that is not compressed: every image is one run of placeholders."""
    is_row = np.concatenate([[False], np.asarray(input_ids) == image_token_id, [False]])
    starts, ends = np.flatnonzero(is_row[1:] & ~is_row[:-1]), np.flatnonzero(is_row[:-1] & ~is_row[1:])
    return [int(rows) // rows_per_tile for rows in ends - starts]


def compress_sample(
    sample: Sample, compressed: Sequence[bool] | np.ndarray, *, image_token_id: int, rows_per_tile: int
) -> Sample:
    """A sample in which compressed tiles have the first quarter of their placeholders.

    As in the released code, the last three quarters of a tile's placeholders leave ``input_ids`` and ``trained``, and
    what follows moves up: positions are counted anew. ``media["compressed"]`` (bool [N]) tells the network.

    Args:
        sample: with all placeholders.
        compressed: for every tile in order.
        image_token_id: the placeholder.
        rows_per_tile: of a tile that is not compressed.

    Raises:
        ValueError: the sample is compressed already, or does not have as many tiles.
    """
    chosen = np.asarray(compressed, bool)
    places = np.flatnonzero(np.asarray(sample.input_ids) == image_token_id)
    if "compressed" in sample.media or chosen.shape != (sample.units,) or len(places) != sample.units * rows_per_tile:
        raise ValueError(f"{len(chosen)} decisions for {sample.units} tiles with {len(places)} placeholders")
    keep = np.ones(len(sample.input_ids), bool)
    keep[places.reshape(sample.units, rows_per_tile)[chosen, rows_per_tile // COMPRESSION :].ravel()] = False
    return replace(
        sample,
        input_ids=np.asarray(sample.input_ids)[keep].tolist(),
        trained=np.asarray(sample.trained)[keep].tolist(),
        media=sample.media | {"compressed": chosen},
    )
