"""``difficulty`` and ``mixture``: sound rows that training shall see, and how often."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from fractions import Fraction

import pyarrow as pa
import pyarrow.parquet as pq

from components.curate.recipe import Difficulty, Mixture
from components.curate.rows import Rows, Verdicts
from model.data.errors import InputError


def difficulty(section: Difficulty, rows: Rows) -> Verdicts:
    """Rows whose measured accuracy lies outside [low, high], or that were not measured.

    Raises:
        InputError: the file of accuracies is missing or has other columns or values.
    """
    accuracies, ids = _accuracies(section), rows.fact("id")
    reasons = {}
    for place in rows.sound():
        accuracy = accuracies.get(ids[place])
        if accuracy is None:
            if not section.keep_unmeasured:
                reasons[place] = "its accuracy was not measured"
        elif not section.low <= accuracy <= section.high:
            reasons[place] = f"accuracy {accuracy:.3f} is not from {section.low:g} to {section.high:g}"
    return Verdicts(reasons)


def _accuracies(section: Difficulty) -> dict[str, float]:
    path = section.accuracies
    try:
        table = pq.read_table(path, columns=["id", "accuracy"])
        ids = table["id"].cast(pa.string()).to_pylist()
        values = table["accuracy"].cast(pa.float64()).to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a Parquet file with the columns id and accuracy ({problem})") from error
    for row_id, value in zip(ids, values, strict=True):
        if row_id is None or value is None or not 0 <= value <= 1:
            raise InputError(f"{path}: row {row_id!r}: accuracy must be from 0 to 1, not {value}")
    return dict(zip(ids, values, strict=True))


def mixture(section: Mixture, rows: Rows) -> Verdicts:
    """Rows that their group has no place for; copies of rows of groups that have too few."""
    names, ids = rows.fact(section.by), rows.fact("id")
    groups: dict[str, list[int]] = defaultdict(list)
    for place in rows.sound():
        groups[names[place]].append(place)
    quotas = mixture_counts({name: len(places) for name, places in groups.items()}, section)
    reasons: dict[int, str] = {}
    copies: dict[int, int] = {}
    for name, places in groups.items():
        drawn = sorted(places, key=lambda place: _draw(section.seed, ids[place]))
        whole, part = divmod(quotas[name], len(places))
        for number, place in enumerate(drawn):
            times = whole + (number < part)
            if times == 0:
                reasons[place] = f"not drawn: {section.by} {name} gives {quotas[name]} of its {len(places)} rows"
            elif times > 1:
                copies[place] = times
    return Verdicts(reasons, copies)


def mixture_counts(sizes: Mapping[str, int], section: Mixture) -> dict[str, int]:
    """How many rows each group gives: in proportion to (weight x size) ** (1 / temperature), exact in all.

    Remainders go to the largest fractions first, then by name (Hamilton's method). Without ``oversample`` a group
    gives no more than it has, and nobody else its share.
    """
    total = section.rows if section.rows is not None else sum(sizes.values())
    try:
        weights = {
            name: Fraction((section.weights.get(name, 1.0) * size) ** (1 / section.temperature))
            for name, size in sizes.items()
        }
    except OverflowError:
        raise InputError(f"mixture: temperature {section.temperature:g} is too low for groups of this size") from None
    if not (whole := sum(weights.values())):
        return dict.fromkeys(sizes, 0)
    exact = {name: weight * total / whole for name, weight in weights.items()}
    counts = {name: int(share) for name, share in exact.items()}
    order = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in order[: total - sum(counts.values())]:
        counts[name] += 1
    return counts if section.oversample else {name: min(count, sizes[name]) for name, count in counts.items()}


def _draw(seed: int, row_id: str) -> bytes:
    """A row's place in the lot: depends on its id and the seed, and on no other row."""
    return hashlib.sha256(f"{seed}:{row_id}".encode()).digest()
