"""Scores of a Flash model by how its tiles are routed, and the visual tokens that a routing keeps."""

from collections.abc import Sequence

import numpy as np

from components.context import FamilyScore, ProgressFunction
from components.scoring_table import by_family, score_model_on_sample
from model.data.schema import Row
from model.flash.decisions import COMPRESSION, Decision
from model.flash.network import FlashModel
from model.flash.processor import FlashProcessor

EVERYTHING = Decision(absolute_threshold=0.0)
"""Compresses every tile, whatever the router says."""


def score_routed(
    network: FlashModel,
    processor: FlashProcessor,
    rows: Sequence[Row],
    decision: Decision | None,
    progress: ProgressFunction,
) -> dict[str, FamilyScore]:
    """The held-out table under another decision than the network's own, which it keeps; None shows all tiles in full.

    Raises:
        InputError: names the row that cannot be scored or whose media cannot be read.
    """
    own = network.decision
    network.route_by(decision)
    try:
        return score_model_on_sample(network, processor, rows, progress=progress)
    finally:
        network.route_by(own)


BLANK_RANGE = 32
"""A tile is blank where no colour channel spans more levels: noise of a scan stays below, ink does not."""


def blank_tiles(tiles_NSSC: np.ndarray) -> np.ndarray:
    """bool [N]: tiles that hold nothing that compression could lose. Channels are looked at one by one: red on blue may
    have one grey level."""
    return np.ptp(tiles_NSSC, axis=(1, 2)).max(-1) <= BLANK_RANGE


def kept_tokens(network: FlashModel, processor: FlashProcessor, rows: Sequence[Row]) -> dict[str, float]:
    """Share of the visual tokens that the network's decision keeps, per task family; blank tiles are not counted.

    Families without an image are left out.

    Raises:
        InputError: names the row whose media cannot be read.
    """
    shares = {}
    for family, indices in by_family(rows).items():
        tiles = tokens = 0.0
        for index in indices:
            (sample,) = network.prepare([processor.question(rows[index])])
            told = ~blank_tiles(sample.media["tiles"])
            compressed = sample.media.get("compressed", np.zeros(len(told), bool))
            tiles += int(told.sum())
            tokens += float(np.where(compressed[told], 1 / COMPRESSION, 1.0).sum())
        if tiles:
            shares[family] = tokens / tiles
    return shares
