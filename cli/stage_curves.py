"""Which curves tell how each stage of the line trained, from the records in its lineage.

A stage's own keys are those of its README: a picture is drawn when the history holds what it shows.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from cli import charts
from cli.curves import Line, curves, shares_over_steps, small_multiples

History = Sequence[Mapping[str, float]]

RATIO_EDGES = (-1e-1, -3e-2, -1e-2, -3e-3, -1e-3, -3e-4, -1e-4, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Borders of the bins ``ratio_histogram/00`` and on, of importance ratios minus 1 (model/training/policy_memory.py)."""
_HISTOGRAM = "ratio_histogram/"

# Title, and (key, name in the legend) of each line; the first of a picture decides whether it is drawn.
_PICTURES: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("terms of the loss", (("preference", "preference"), ("quality", "quality"), ("generation", "generation"))),
    ("reward of chosen and rejected", (("chosen_reward", "chosen"), ("rejected_reward", "rejected"))),
    ("margin of the rewards", (("margin", "margin of the rewards"),)),
    ("pairs in the right order", (("accuracy", "pairs in the right order"),)),
    ("KL from the reference", (("divergence_compressed", "compressed"), ("divergence_full", "in full"))),
    ("tiles labelled compress, and agreement", (("compress_share", "labelled compress"), ("agreement", "agreement"))),
    ("log r: what compression costs", (("log_ratio", "mean of the step"), ("threshold", "threshold"))),
)
_ROLLOUTS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("sampled answers", (("reward", "reward"), ("accuracy", "accuracy"), ("format", "format"))),
    ("tokens of an answer", (("length", "tokens of an answer"),)),
    ("entropy per token", (("entropy", "entropy per token"),)),
    ("share of answers clipped", (("clipped_high", "above"), ("clipped_low", "below"))),
    ("share of answers", (("degenerate", "in groups that teach nothing"), ("cut", "cut at the limit"))),
    ("sampler against trainer", (("mismatch", "sampler against trainer"),)),
)
_FAMILY_COLUMNS = ("reward", "accuracy", "length", "entropy", "clipped")
_BY_FAMILY = tuple(f"{name}/" for name in _FAMILY_COLUMNS)


def stage_pictures(step: str, lineage: Mapping[str, Any]) -> list[str]:
    """The pictures of one training step as SVG, the loss first; none for a step that trained nothing.

    Args:
        step: its name.
        lineage: what lies beside its outputs: ``history`` and ``config`` are read.
    """
    history: History = lineage["history"]
    if not history:
        return []
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    rolled = any("reward" in entry for entry in history)
    if rolled:  # a policy's loss is around zero, and says little
        first, rest = _drawn(_ROLLOUTS[:1], history), _drawn(_ROLLOUTS[1:], history)
        return [*first, *_families(history), *rest, *_ratios(history, lineage["config"])]
    return [charts.loss_curve(f"loss of {step}", losses), *_drawn(_PICTURES, history)]


def _drawn(pictures: Sequence[tuple[str, tuple[tuple[str, str], ...]]], history: History) -> list[str]:
    """Those of ``pictures`` whose first key some record holds."""
    found = []
    for title, keys in pictures:
        lines = [Line(name, points_of(history, key)) for key, name in keys]
        if lines[0].points:
            found.append(curves(title, [line for line in lines if line.points]))
    return found


def points_of(history: History, key: str) -> list[tuple[float, float]]:
    """(step, value) of the records that hold ``key``."""
    return [(entry["step"], entry[key]) for entry in history if key in entry]


def _families(history: History) -> list[str]:
    """What is recorded of each task family, where there are several: its columns are those that some record holds."""
    found = {tuple(key.split("/", 1)) for entry in history for key in entry if key.startswith(_BY_FAMILY)}
    families = sorted({family for _, family in found})
    if len(families) < 2:
        return []
    columns = [name for name in _FAMILY_COLUMNS if name in {name for name, _ in found}]
    rows = [(family, [Line(name, points_of(history, f"{name}/{family}")) for name in columns]) for family in families]
    return [small_multiples("by family", columns, rows)]


def _ratios(history: History, config: Mapping[str, Any]) -> list[str]:
    """Where the importance ratios of each step lay, and between which bounds they count."""
    keys = [f"{_HISTOGRAM}{number:02d}" for number in range(len(RATIO_EDGES) + 1)]
    columns = [(entry["step"], [entry.get(key, 0.0) for key in keys]) for entry in history if keys[0] in entry]
    if not columns:
        return []
    low, high = -config["objective"]["epsilon_low"], config["objective"]["epsilon_high"]
    inner = [
        number + 1 for number, (a, b) in enumerate(pairwise(RATIO_EDGES)) if a >= low * 1.001 and b <= high * 1.001
    ]
    within = (inner[0], inner[-1]) if inner else None
    return [shares_over_steps("importance ratio minus 1", _labels(), columns, within=within)]


def _labels() -> list[str]:
    """A bin by its border that is farther from zero."""
    middle = len(RATIO_EDGES) // 2
    below, above = RATIO_EDGES[: middle - 1], RATIO_EDGES[middle + 1 :]
    inner = [*(f"{edge:g}" for edge in below), "0", *(f"{edge:+g}" for edge in above)]
    return [f"< {RATIO_EDGES[0]:g}", *inner, f"> {RATIO_EDGES[-1]:g}"]
