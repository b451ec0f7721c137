"""Positions of the M-RoPE families: time, height and width of every token. Imports no torch.

Text counts 0, 1, 2, ... on all three axes. A visual block that starts at s has time s + floor(k * interval), height
s + row and width s + column (Qwen2-VL, arXiv 2409.12191, section 2.1; Qwen2.5-VL, arXiv 2502.13923, section 2.1.2).
What follows a block starts one after its largest position. transformers 5.19 starts it after the block's larger spatial
side instead, so that text overlaps videos that last longer than they are wide; there it is no oracle.
"""

from collections.abc import Collection, Sequence

import numpy as np

from model.families.qwen_images import Grid


def mrope_positions(
    input_ids: Sequence[int],
    grids: Sequence[Grid] | np.ndarray,
    intervals: Sequence[float | None],
    *,
    visual_ids: Collection[int],
    merge: int,
) -> np.ndarray:
    """Positions of one sample.

    Args:
        input_ids: [T] token ids, placeholders expanded.
        grids: [I, 3] patches of each image and video along time, height and width, in the order of the tokens.
        intervals: [I] positions between two temporal patches: 1 for Qwen2-VL and for images; tokens per second times
            seconds per temporal patch for Qwen2.5-VL; None where every temporal patch is a block of its own, with text
            between them (Qwen3-VL).
        visual_ids: ids of the placeholders.
        merge: merge x merge patches are one token.

    Returns:
        int64 [3, T].

    Raises:
        ValueError: the placeholders are not those of the grids.
    """
    blocks = []
    for (time, height, width), interval in zip(grids, intervals, strict=True):
        block = (height // merge, width // merge)
        blocks += [(1, *block, 0.0)] * time if interval is None else [(time, *block, interval)]
    ids = np.asarray(input_ids)
    visual = np.flatnonzero(np.isin(ids, list(visual_ids)))
    if len(visual) != sum(time * height * width for time, height, width, _ in blocks):
        raise ValueError(f"{len(visual)} visual tokens do not fit the grids {[tuple(grid) for grid in grids]}")
    positions = np.empty((3, len(ids)), np.int64)
    done, start, seen = 0, 0, 0
    for time, height, width, interval in blocks:
        size = time * height * width
        first = int(visual[seen])
        if visual[seen + size - 1] != first + size - 1:
            raise ValueError(f"the visual tokens from {first} on do not fit a block of {size}")
        start = _count(positions, done, first, start)
        steps = np.floor(np.arange(time) * interval).astype(np.int64)
        axes = np.meshgrid(steps, np.arange(height), np.arange(width), indexing="ij")
        positions[:, first : first + size] = start + np.stack(axes).reshape(3, size)
        start += max(int(steps[-1]), height - 1, width - 1) + 1
        done, seen = first + size, seen + size
    _count(positions, done, len(ids), start)
    return positions


def _count(positions: np.ndarray, first: int, end: int, start: int) -> int:
    positions[:, first:end] = np.arange(start, start + end - first)
    return start + end - first


def position_delta(positions: np.ndarray) -> int:
    """What is added to a token's index to give its position, for the tokens generated after ``positions`` [3, T]."""
    return int(positions.max()) + 1 - positions.shape[1]
