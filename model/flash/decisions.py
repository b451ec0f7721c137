"""Which tiles are shown at a quarter of their rows, given the router's probabilities. Imports no torch.

The released code compresses a tile whose probability is above a quantile of all tiles of the call, and at least an
absolute threshold. A call may hold several requests there, so one request's answer depends on its neighbours; and the
only tile of an image is never above its own quantile, so it is never compressed. Here a quantile spans one image, and
a probability that equals it is high enough.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from model.data.errors import InputError

RELEASED_KEYS = ("flash_mode", "flash_relative_threshold", "flash_absolute_threshold")
"""What a released Flash checkpoint says in config.json."""
FLASH_KEYS = (*RELEASED_KEYS, "flash_decision", "flash_token_budget")
"""The same, and what only we read. Stock transformers and vLLM carry keys along that they do not know."""
COMPRESSION = 4
"""A compressed tile has this many times fewer rows."""
NOTHING = 1.0
"""The absolute threshold that compresses no tile: a softmax is below 1, and where one is 1 it was rounded to it."""
TIE = 1e-5
"""Closer probabilities rank as one: equal tiles may differ in the last bits, by the batch they were seen in."""


class BudgetError(InputError):
    """A request has more tiles than its budget of tokens can show, be they all compressed."""


Rule = Literal["absolute", "relative", "budget"]


@dataclass(frozen=True)
class Decision:
    """How probabilities become decisions.

    Attributes:
        rule: ``absolute``: a probability of at least ``absolute_threshold``. ``relative``: also at least the quantile
            ``relative_threshold`` of the probabilities of its image. ``budget``: the most compressible tiles of a
            request, as few as bring its visual tokens down to ``token_budget``.
        absolute_threshold: in [0, 1]; ``NOTHING`` compresses no tile.
        relative_threshold: in [0, 1]; a third compresses about two thirds of an image's tiles, half of its tokens.
        token_budget: visual tokens of a request; only for ``budget``.

    Raises:
        InputError: a threshold outside [0, 1], an unknown rule, or a budget that is missing or of no other rule.
    """

    rule: Rule = "absolute"
    absolute_threshold: float = 0.5
    relative_threshold: float = 0.0
    token_budget: int | None = None

    def __post_init__(self) -> None:
        if self.rule not in ("absolute", "relative", "budget"):
            raise InputError(f"flash_decision: {self.rule!r} is not 'absolute', 'relative' or 'budget'")
        for name in ("absolute_threshold", "relative_threshold"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InputError(f"flash_{name}: {value!r} is not a number in [0, 1]")
        if (self.rule == "budget") != (self.token_budget is not None):
            raise InputError("flash_token_budget: goes with the decision 'budget', and with no other")
        budget = self.token_budget
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 1):
            raise InputError(f"flash_token_budget: {budget!r} is not a positive number of tokens")

    @property
    def spans_request(self) -> bool:
        """Whether the images of a request are decided together, so that one's features depend on the others."""
        return self.rule == "budget"

    def keys(self) -> dict[str, Any]:
        """What config.json says of it."""
        values = (True, self.relative_threshold, self.absolute_threshold, self.rule, self.token_budget)
        return {key: value for key, value in zip(FLASH_KEYS, values, strict=True) if value is not None}


def stated_decision(config: dict[str, Any]) -> Decision | None:
    """The decision that a configuration states; None where it does not route (no ``flash_mode``).

    A released checkpoint names no rule: it is read as ``absolute``.

    Raises:
        InputError: as ``Decision``.
    """
    mode = config.get("flash_mode")
    if mode is None or mode is False:
        return None
    if mode is not True:
        raise InputError(f"flash_mode: {mode!r} is neither true nor false")
    given = {
        "rule": config.get("flash_decision"),
        "absolute_threshold": config.get("flash_absolute_threshold"),
        "relative_threshold": config.get("flash_relative_threshold"),
        "token_budget": config.get("flash_token_budget"),
    }
    return Decision(**{name: value for name, value in given.items() if value is not None})


def decide(
    probabilities_N: np.ndarray, tiles_per_image: Sequence[int], decision: Decision, *, rows_per_tile: int = 256
) -> np.ndarray:
    """Which tiles of ONE request are compressed.

    Args:
        probabilities_N: P(compress) of its tiles, image after image.
        tiles_per_image: their sum is N.
        decision: the rule.
        rows_per_tile: visual tokens of a tile that is not compressed.

    Returns:
        bool [N].

    Raises:
        BudgetError: the request cannot meet its budget.
        ValueError: the images do not have N tiles.
    """
    probabilities = np.asarray(probabilities_N, np.float64)
    if probabilities.shape != (sum(tiles_per_image),):
        raise ValueError(f"probabilities of shape {probabilities.shape} for {sum(tiles_per_image)} tiles")
    if decision.rule == "budget":
        return _within_budget(probabilities, decision.token_budget, rows_per_tile)
    chosen = (probabilities >= decision.absolute_threshold) & (decision.absolute_threshold < NOTHING)
    if decision.rule == "relative":
        borders = np.cumsum([0, *tiles_per_image])
        for start, end in pairwise(borders):
            chosen[start:end] &= _at_least_quantile(probabilities[start:end], decision.relative_threshold)
    return chosen


def _at_least_quantile(probabilities: np.ndarray, share: float) -> np.ndarray:
    """Where a value is at least the quantile of all (linear between neighbours, as numpy's and torch's)."""
    if not len(probabilities):
        return np.zeros(0, bool)
    ranked = _without_last_bits(probabilities)
    # A value reaches a quantile between two neighbours exactly if it reaches the upper one.
    place = math.ceil(round(share * (len(ranked) - 1), 9))
    return ranked >= np.sort(ranked)[place]


def _within_budget(probabilities: np.ndarray, budget: int, rows: int) -> np.ndarray:
    """The fewest tiles, most compressible first and the earlier of equals, that bring the tokens to ``budget``."""
    tiles, saved = len(probabilities), rows - rows // COMPRESSION
    needed = max(0, math.ceil((tiles * rows - budget) / saved))
    if needed > tiles:
        least = tiles * (rows // COMPRESSION)
        raise BudgetError(f"{tiles} tiles need at least {least} visual tokens; the budget of a request is {budget}")
    chosen = np.zeros(tiles, bool)
    chosen[np.argsort(-_without_last_bits(probabilities), kind="stable")[:needed]] = True
    return chosen


def _without_last_bits(probabilities: np.ndarray) -> np.ndarray:
    """Where one lies less than ``TIE`` under the next higher, that one in its place. (Rounding would part two equal
    tiles whose probability stands where it goes up for one and down for the other.)"""
    order = np.argsort(-probabilities, kind="stable")
    falling = probabilities[order]
    tied = np.append(False, -np.diff(falling) < TIE)[: len(order)]
    first = np.maximum.accumulate(np.where(tied, 0, np.arange(len(order))))
    ranked = np.empty_like(probabilities)
    ranked[order] = falling[first]
    return ranked
