"""The threshold of a router, chosen by the score that it costs on rows that the router has not learned from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from components.context import ProgressFunction
from components.flash_scores import blank_tiles
from components.route.config import CalibrationConfig
from components.scoring_table import score_row
from model.data.errors import InputError
from model.data.schema import Row
from model.families.generation import answer_rows
from model.flash.decisions import NOTHING, Decision
from model.flash.network import FlashModel
from model.flash.processor import FlashProcessor

_SHARES = tuple(step / 40 for step in range(1, 41))
"""Shares of the tiles that hold something which candidates compress."""


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what it was chosen by.

    Attributes:
        threshold: of P(compress); ``NOTHING`` where no other keeps enough of the score.
        full: mean score of the rows at full resolution. Of 0 there is nothing to keep, so nothing is compressed.
        routed: mean score of the rows under the threshold.
    """

    threshold: float
    full: float
    routed: float


def set_apart(rows: Sequence[Row], number: int) -> tuple[list[Row], list[Row]]:
    """(rows to train on, ``number`` rows to calibrate with, at most half): from all over the dataset.

    Its families may stand one after the other.

    Raises:
        InputError: there is a single row.
    """
    if len(rows) < 2:
        raise InputError("route.calibration: sets rows apart, and the dataset has only one with media")
    number = min(number, len(rows) // 2)
    apart = {index * len(rows) // number for index in range(number)}
    return [row for i, row in enumerate(rows) if i not in apart], [rows[i] for i in sorted(apart)]


def choose_threshold(
    network: FlashModel,
    processor: FlashProcessor,
    rows: Sequence[Row],
    config: CalibrationConfig,
    progress: ProgressFunction,
) -> Calibration:
    """The lowest threshold, from the top down, at which the mean score of ``rows`` stays at ``config.retain`` of that
    at full resolution. The network's own decision is kept.

    Raises:
        InputError: names the row that cannot be scored or whose media cannot be read.
    """
    own = network.decision
    try:
        full = _score(network, processor, rows, None, progress)
        chosen = Calibration(NOTHING, full, full)
        # Of a score of 0 every threshold keeps every share: the rows tell none from another.
        for threshold in _candidates(network, processor, rows) if full else ():
            routed = _score(network, processor, rows, threshold, progress)
            if routed < config.retain * full:
                break
            chosen = Calibration(threshold, full, routed)
    finally:
        network.route_by(own)
    return chosen


def _score(
    network: FlashModel,
    processor: FlashProcessor,
    rows: Sequence[Row],
    threshold: float | None,
    progress: ProgressFunction,
) -> float:
    network.route_by(None if threshold is None else Decision(absolute_threshold=threshold))
    answers = answer_rows(network, processor, rows, progress=progress)
    return math.fsum(score_row(row, answer).value for row, answer in zip(rows, answers, strict=True)) / len(rows)


@torch.inference_mode()
def _candidates(network: FlashModel, processor: FlashProcessor, rows: Sequence[Row]) -> list[float]:
    """Thresholds that compress ever more of the tiles that are not blank, each different from the one before."""
    found = []
    for row in rows:
        tiles = processor.question(row).media["tiles"]
        told = tiles[~blank_tiles(tiles)]
        if len(told):
            found += network.compress_probabilities(network.patches(torch.from_numpy(told))).tolist()
    if not found:
        return []
    ordered = np.sort(found)[::-1]
    places = sorted({math.ceil(share * len(ordered)) - 1 for share in _SHARES})
    return list(dict.fromkeys(float(ordered[place]) for place in places))
