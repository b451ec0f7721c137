"""Rows of several sources in an exact ratio, as a pure function of the position. Imports no torch.

InternVL3.5 (arXiv 2508.18265) trains on text-only and multimodal rows as 1 : 2.5 (section 2.2) and 1 : 3.5 (section
2.3). Drawn at random, the shares of a batch wander; here a fixed pattern repeats, whose every stretch is as near the
ratio as whole rows allow.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import gcd

import numpy as np

from model.data.errors import InputError

_LONGEST_PATTERN = 10_000


class Mixture:
    """Which row stands at each position of an endless stream over several sources.

    With k sources, source i with share p_i = ratio[i] / sum(ratio):

    - among the first n positions it has n * p_i rows, give or take 1 - 1 / (2k - 2) (``pattern``);
    - among any n positions in a row, n * p_i give or take 2 - 1 / (k - 1): for two sources less than one row, the
      best that whole rows allow.

    Each source walks epochs of its own: one epoch takes every row once, in an order drawn from (seed, source, epoch).
    A source that is short beside its share begins its next epoch earlier; no row is dropped.

    Args:
        counts: rows of each source.
        ratio: whole numbers above zero, e.g. (2, 5) for 1 : 2.5.
        seed: of the order within the sources.
        names: what a message calls the sources; their numbers when empty.

    Raises:
        InputError: the ratio does not fit the sources, or asks for rows of a source that has none.
    """

    def __init__(self, counts: Sequence[int], ratio: Sequence[int], seed: int, names: Sequence[str] = ()) -> None:
        written = " : ".join(map(str, ratio))
        if len(counts) != len(ratio) or not ratio or min(ratio) < 1:
            raise InputError(f"the ratio {written} is not {len(counts)} whole numbers above zero")
        for source, count in enumerate(counts):
            if count < 1:
                name = names[source] if names else f"source {source}"
                raise InputError(f"the ratio {written} asks for {name}, and there are none")
        divisor = gcd(*ratio)
        self.counts, self.ratio, self.seed = tuple(counts), tuple(part // divisor for part in ratio), seed
        if sum(self.ratio) > _LONGEST_PATTERN:
            raise InputError(f"the ratio {written} only repeats after more than {_LONGEST_PATTERN} rows; round it")
        self._pattern = pattern(self.ratio)
        seen = [0] * len(ratio)
        self._before = []  # rows of the same source before this one in the pattern
        for source in self._pattern:
            self._before.append(seen[source])
            seen[source] += 1
        # A packer's window may reach over the end of an epoch of each source: two are kept.
        self._epochs = [lru_cache(maxsize=2)(self._shuffled) for _ in counts]

    def at(self, position: int) -> tuple[int, int]:
        """(source, row within the source) at a position of the stream, from 0."""
        period, place = divmod(position, len(self._pattern))
        source = self._pattern[place]
        epoch, offset = divmod(period * self.ratio[source] + self._before[place], self.counts[source])
        return source, int(self._epochs[source](source, epoch)[offset])

    def _shuffled(self, source: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, source, epoch)).permutation(self.counts[source])


def pattern(ratio: Sequence[int]) -> list[int]:
    """The source at each of sum(ratio) positions, spread as evenly as can be; to be repeated.

    Tijdeman's rule for the chairman assignment problem (Discrete Mathematics 32, 1980): of the sources that may have
    the next position without getting ahead by more than 1 - 1 / (2k - 2), the one that would first fall behind by more.
    """
    total, slack = sum(ratio), max(2 * len(ratio) - 2, 1)
    counts = [0] * len(ratio)
    result = []
    for n in range(1, total + 1):
        # All in whole numbers: (n * share - count) >= 1 / slack, times total * slack.
        ready = [i for i, part in enumerate(ratio) if slack * (n * part - counts[i] * total) >= total]
        source = min(ready, key=lambda i: Fraction(slack * (counts[i] + 1) - 1, ratio[i]))
        counts[source] += 1
        result.append(source)
    return result
