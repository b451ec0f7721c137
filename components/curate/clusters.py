"""Clusters of bounded size: k-means on vectors of whole numbers, the same on any machine and with any threads."""

from collections.abc import Iterator

import numpy as np

_ROUNDS = 8
_FAN_OUT = 64  # at most so many clusters at once: the work grows with N log N
_ROWS_AT_ONCE = 65_536
_LARGEST = 127


def blocks(vectors: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Split ``vectors`` (int8 [N, D]) into clusters of at most ``most``; yields the numbers of their rows, ascending.

    A cluster that is still too large is split again. Where clustering parts nothing (all vectors alike), rows are cut
    in their order: whoever compares them keeps one of each part.
    """
    waiting = [np.arange(len(vectors))]
    while waiting:
        members = waiting.pop()
        if len(members) <= most:
            if len(members):
                yield members
            continue
        nearest = _kmeans(vectors[members], min(_FAN_OUT, -(-2 * len(members) // most)))
        parts = [members[nearest == cluster] for cluster in np.unique(nearest)]
        if len(parts) == 1:
            parts = [members[start : start + most] for start in range(0, len(members), most)]
        waiting.extend(reversed(parts))


def _kmeans(vectors: np.ndarray, clusters: int) -> np.ndarray:
    """Number of the cluster of every row [N]: Lloyd's algorithm on the sphere, from evenly spaced rows."""
    lengths = np.sqrt((vectors.astype(np.int32) ** 2).sum(1, keepdims=True))
    centres = vectors[np.linspace(0, len(vectors) - 1, clusters).astype(np.int64)]
    nearest = _nearest(vectors, centres)
    for _ in range(_ROUNDS):
        sums = np.zeros((clusters, vectors.shape[1]))
        # In the order of the rows, one after the other: a sum of floats depends on its order.
        np.add.at(sums, nearest, vectors / np.maximum(lengths, 1))
        largest = np.abs(sums).max(1, keepdims=True)
        moved = np.round(sums * (_LARGEST / np.maximum(largest, 1e-9))).astype(np.int8)
        centres = np.where(largest > 0, moved, centres)
        before, nearest = nearest, _nearest(vectors, centres)
        if np.array_equal(before, nearest):
            break
    return nearest


def _nearest(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The centre of largest cosine for every row, the first of equals. Products of bytes sum up exactly in float32."""
    lengths = np.maximum(np.sqrt((centres.astype(np.int32) ** 2).sum(1)), 1)
    columns = centres.astype(np.float32).T
    parts = range(0, len(vectors), _ROWS_AT_ONCE)
    return np.concatenate(
        [((vectors[start : start + _ROWS_AT_ONCE].astype(np.float32) @ columns) / lengths).argmax(1) for start in parts]
    )
