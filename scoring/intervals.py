"""Bootstrap confidence intervals over rows: of a mean, and of a paired difference of means."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Drawn indices held at once: 2**22 int64, 32 MiB.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: Sequence[float], *, resamples: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval of the mean of ``values`` (one per row).

    Rows are drawn with replacement ``resamples`` times from a generator seeded with ``seed``; the same arguments give
    the same bits. When all values are equal the interval has no width: it says nothing about rows unlike these.

    Raises:
        ValueError: no values, a value that is not finite, or parameters out of range.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError("a bootstrap needs at least one value")
    if not np.isfinite(array).all():
        raise ValueError("a bootstrap needs finite values")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be positive and level between 0 and 1, got {resamples} and {level}")
    generator = np.random.default_rng(seed)
    per_chunk = max(1, _CHUNK // array.size)
    means = [
        array[generator.integers(0, array.size, (min(per_chunk, resamples - start), array.size))].mean(axis=1)
        for start in range(0, resamples, per_chunk)
    ]
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return Interval(float(array.mean()), float(low), float(high))


def bootstrap_difference(
    ours: Sequence[float], theirs: Sequence[float], *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Paired bootstrap interval of mean(ours) - mean(theirs).

    ``ours[i]`` and ``theirs[i]`` are scores of the same row, and rows are drawn as pairs, so what makes a row hard for
    both cancels out.

    Raises:
        ValueError: the lengths differ, or as in ``bootstrap_mean``.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} scores cannot be paired with {len(theirs)}")
    differences = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    return bootstrap_mean(differences, resamples=resamples, seed=seed, level=level)
