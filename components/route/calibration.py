"""The threshold of a router, chosen by the score that it costs on rows that the router has not learned from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.context import ProgressFunction
from components.flash_scores import blank_tiles
from components.route.config import CalibrationConfig
from components.scoring_table import score_row
from model.data.errors import InputError
from model.data.schema import Row
from model.families.generation import answer_rows
from model.flash.decisions import NOTHING, TIE, Decision
from model.flash.encoding import sample_probabilities
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


def _candidates(network: FlashModel, processor: FlashProcessor, rows: Sequence[Row]) -> list[float]:
    samples = [processor.question(row) for row in rows]
    probabilities = sample_probabilities(network, samples)
    told = [~blank_tiles(sample.media["tiles"]) for sample in samples]
    return candidates(np.concatenate(probabilities), np.concatenate(told))


def candidates(probabilities_N: np.ndarray, told_N: np.ndarray) -> list[float]:
    """Thresholds that compress ever more of the tiles that hold something (``told_N``, bool), at most one a share.

    Each lies halfway between two neighbouring probabilities of tiles, blank or not, or between the lowest and 0: a tile
    that is seen in another batch differs in the last bits, and must be decided as it was scored. Neighbours that may be
    equal but for that have nothing between them.
    """
    order = np.argsort(-probabilities_N, kind="stable")
    falling = probabilities_N[order].astype(np.float64)
    lower = np.append(falling[1:], 0.0)[: len(falling)]
    gaps = np.flatnonzero(falling - lower > TIE)
    compressed = np.cumsum(told_N[order])[gaps]
    wanted = [math.ceil(share * told_N.sum()) for share in _SHARES] if told_N.any() else []
    places = sorted({int(place) for place in np.searchsorted(compressed, wanted) if place < len(gaps)})
    return [float(falling[gaps[place]] + lower[gaps[place]]) / 2 for place in places]
