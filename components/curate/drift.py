"""Drift: how a dataset differs from its previous version, in its shares and in its quantiles.

Population stability index over categories i with shares p (new) and q (previous): PSI = sum (p_i - q_i) ln(p_i / q_i),
each count raised by one half so that none is zero. Below 0.1 is little, above 0.25 much (Siddiqi, "Credit Risk
Scorecards", 2006). Numbers are compared by the Kolmogorov-Smirnov statistic sup |F(x) - G(x)| of the two empirical
distribution functions, from 0 to 1.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.curate.text_operators import spoken
from model.data.errors import InputError
from model.data.shards import Dataset

QUANTILES = (0.05, 0.5, 0.95)
_COLUMNS = ("task", "source", "license", "messages", "media.list.element.width", "media.list.element.height")
_SHOWN = 12


@dataclass
class Shape:
    """What is compared: counts by task, source and licence; per row or image the numbers of ``numbers``."""

    rows: int = 0
    shares: dict[str, Counter[str]] = field(
        default_factory=lambda: {n: Counter() for n in ("task", "source", "license")}
    )
    numbers: dict[str, list[float]] = field(
        default_factory=lambda: {"characters": [], "images": [], "width": [], "height": []}
    )

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row; its media may be without bytes."""
        self.rows += 1
        for name, counts in self.shares.items():
            counts[row[name]] += 1
        self.numbers["characters"].append(len(spoken(row["messages"])))
        self.numbers["images"].append(len(row["media"]))
        for name in ("width", "height"):
            self.numbers[name].extend(medium[name] for medium in row["media"] if medium[name] is not None)


def shape_of(dataset: Dataset) -> Shape:
    """The shape of a dataset; reads no media, one row group at a time.

    Raises:
        InputError: a file cannot be read.
    """
    shape = Shape()
    for path in dataset.shards:
        try:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    for row in file.read_row_group(group, columns=list(_COLUMNS)).to_pylist():
                        shape.add(row)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:200]})") from error
    return shape


def drift(new: Shape, previous: Shape) -> dict[str, Any]:
    """The table: for each column of labels its PSI and largest shares, for each number its KS and quantiles."""
    labels = {
        name: {
            "psi": round(psi(new.shares[name], previous.shares[name]), 6),
            "shares": _largest(new.shares[name], previous.shares[name]),
        }
        for name in new.shares
    }
    numbers = {
        name: {
            "ks": round(kolmogorov_smirnov(new.numbers[name], previous.numbers[name]), 6),
            "new": _quantiles(new.numbers[name]),
            "previous": _quantiles(previous.numbers[name]),
        }
        for name in new.numbers
    }
    return {"rows": {"new": new.rows, "previous": previous.rows}, "labels": labels, "numbers": numbers}


def psi(new: Mapping[str, int], previous: Mapping[str, int]) -> float:
    """Population stability index of two tables of counts (formula above); 0 for no labels."""
    names = sorted({*new, *previous})
    if not names:
        return 0.0
    p, q = ([counts.get(name, 0) + 0.5 for name in names] for counts in (new, previous))
    pairs = [(a / sum(p), b / sum(q)) for a, b in zip(p, q, strict=True)]
    return math.fsum((a - b) * math.log(a / b) for a, b in pairs)


def kolmogorov_smirnov(new: Sequence[float], previous: Sequence[float]) -> float:
    """The largest distance of two empirical distribution functions; 0 where both are empty, 1 where one is."""
    if not new or not previous:
        return float(bool(new) != bool(previous))
    first, second = np.sort(np.asarray(new, np.float64)), np.sort(np.asarray(previous, np.float64))
    points = np.union1d(first, second)
    below = [np.searchsorted(values, points, side="right") / len(values) for values in (first, second)]
    return float(np.abs(below[0] - below[1]).max())


def _largest(new: Counter[str], previous: Counter[str]) -> list[dict[str, Any]]:
    """The labels with the largest shares in either version, at most a dozen."""
    totals = max(1, new.total()), max(1, previous.total())
    shares = {name: (new[name] / totals[0], previous[name] / totals[1]) for name in {*new, *previous}}
    order = sorted(shares, key=lambda name: (-max(shares[name]), name))[:_SHOWN]
    return [{"label": name, "new": round(shares[name][0], 6), "previous": round(shares[name][1], 6)} for name in order]


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    found = np.quantile(np.asarray(values, np.float64), QUANTILES, method="inverted_cdf")
    return {f"{quantile:g}": float(value) for quantile, value in zip(QUANTILES, found, strict=True)}
