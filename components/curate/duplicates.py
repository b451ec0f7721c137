"""Decisions between rows: exact duplicates, near duplicates, contamination by the evaluation rows.

Perceptual hashes only nominate: at distance 4 they take many a digit canvas for a copy of another. Pixels decide.
"""

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Whether image ``i`` of row ``a`` shows the same as image ``j`` of row ``b``, by pixels: same(a, i, b, j).
SamePixels = Callable[[int, int, int, int], bool]
_PAIRS_AT_ONCE = 1 << 22


@dataclass
class Signature:
    """What decides about one row. The lists are over its media; ``phash`` is None for a video.

    ``text_key`` hashes the messages; ``text`` is the whole text of a row without media, None for others.
    """

    row_id: str
    reason: str | None
    answers: Sequence[str] = ()
    sha256: Sequence[str] = ()
    phash: Sequence[int | None] = ()
    text_key: str = ""
    text: str | None = None


def reject_exact_duplicates(rows: Sequence[Signature]) -> None:
    """Set the reason of rows whose id, or whose messages and media bytes, an earlier sound row has."""
    ids: set[str] = set()
    contents: dict[tuple[str, ...], str] = {}
    for row in rows:
        if row.reason is not None:
            continue
        if row.row_id in ids:
            row.reason = "the id is taken by an earlier row"
            continue
        ids.add(row.row_id)
        earlier = contents.setdefault((row.text_key, *row.sha256), row.row_id)
        if earlier != row.row_id:
            row.reason = f"of {earlier}"


@dataclass
class Lookalikes:
    """Sound rows that some other row with the same messages may repeat, by the hashes of their images.

    Rows whose hashes are equal are of one kind, however many they are: pairs of kinds are few where pairs of rows, of a
    fixed camera for instance, would fill the memory.

    Attributes:
        kind: number of the kind of each row, by place.
        near: the kinds whose hashes are all near those of a kind, itself included.
    """

    kind: dict[int, int]
    near: dict[int, list[int]]


def near_duplicate_candidates(rows: Sequence[Signature], distance: int) -> Lookalikes:
    """Which rows have the same messages as another one, and images that all have near hashes.

    Rows that say something else about the same image are no duplicates.
    """
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.reason is None and row.phash and None not in row.phash:
            groups[row.text_key, len(row.phash)].append(index)
    found, first = Lookalikes({}, {}), 0
    for members in groups.values():
        hashes = np.array([rows[index].phash for index in members], np.uint64)
        kinds, kind_of, counts = np.unique(hashes, axis=0, return_inverse=True, return_counts=True)
        near = {first + kind: [first + kind] for kind in range(len(kinds))}
        for one, other in near_pairs(kinds[:, 0], distance).tolist():
            if np.bitwise_count(kinds[one] ^ kinds[other]).max() <= distance:
                near[first + one].append(first + other)
                near[first + other].append(first + one)
        for place, kind in zip(members, kind_of.ravel().tolist(), strict=True):
            if counts[kind] > 1 or len(near[first + kind]) > 1:
                found.kind[place] = first + kind
        found.near |= near
        first += len(kinds)
    return found


def reject_near_duplicates(rows: Sequence[Signature], found: Lookalikes, same: SamePixels) -> None:
    """Set the reason of every row whose images are, by pixels, those of an earlier lookalike that is kept."""
    kept: dict[int, list[int]] = defaultdict(list)
    for place in sorted(found.kind):
        kind = found.kind[place]
        for earlier in heapq.merge(*(kept[other] for other in found.near[kind])):
            if all(same(earlier, image, place, image) for image in range(len(rows[place].phash))):
                rows[place].reason = f"of {rows[earlier].row_id}"
                break
        else:
            kept[kind].append(place)


def contamination_candidates(
    rows: Sequence[Signature], evaluation: Sequence[Signature], distance: int
) -> Iterator[tuple[int, int, int, int]]:
    """(row, image, evaluation row, image) whose hashes are near and whose rows share an accepted answer."""
    ours, theirs = _images_by_answer(rows), _images_by_answer(evaluation)
    for answer in ours.keys() & theirs.keys():
        left, right = ours[answer], theirs[answer]
        left_hashes = np.array([rows[row].phash[image] for row, image in left], np.uint64)
        right_hashes = np.array([evaluation[row].phash[image] for row, image in right], np.uint64)
        chunk = max(1, _PAIRS_AT_ONCE // len(right))
        for start in range(0, len(left), chunk):
            far = np.bitwise_count(left_hashes[start : start + chunk, None] ^ right_hashes)
            for i, j in np.argwhere(far <= distance).tolist():
                yield (*left[start + i], *right[j])


def reject_contaminated_images(
    rows: Sequence[Signature],
    evaluation: Sequence[Signature],
    candidates: Sequence[tuple[int, int, int, int]],
    same: SamePixels,
) -> None:
    """Set the reason of rows that show an evaluation image and give its answer; ``same(row, image, row, image)``."""
    for row, image, other, other_image in sorted(candidates):
        if rows[row].reason is None and same(row, image, other, other_image):
            rows[row].reason = f"image and answer of evaluation row {evaluation[other].row_id}"


def reject_contaminated_videos(rows: Sequence[Signature], evaluation: Sequence[Signature]) -> None:
    """Set the reason of rows that hold the video of an evaluation row, byte for byte, and give its answer."""
    owners: dict[tuple[str, str], str] = {}
    for row in evaluation:
        for key in _video_answers(row):
            owners.setdefault(key, row.row_id)
    for row in rows:
        if row.reason is None and (key := next((key for key in _video_answers(row) if key in owners), None)):
            row.reason = f"video and answer of evaluation row {owners[key]}"


def reject_contaminated_texts(rows: Sequence[Signature], evaluation: Sequence[Signature], size: int) -> None:
    """Set the reason of text-only rows that share ``size`` consecutive words with a text-only evaluation row.

    A text that has fewer words counts as one n-gram.
    """
    owners: dict[tuple[str, ...], str] = {}
    for row in evaluation:
        for gram in _ngrams(row.text, size):
            owners.setdefault(gram, row.row_id)
    if not owners:
        return
    for row in rows:
        if row.reason is None:
            owner = next((owners[gram] for gram in _ngrams(row.text, size) if gram in owners), None)
            if owner is not None:
                row.reason = f"{size} words in a row of evaluation row {owner}"


def near_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """All pairs [M, 2] of places i < j in ``hashes`` (uint64 [N]) at a Hamming distance of at most ``distance``.

    The bits are cut into ``distance + 1`` bands, one of which two such hashes must share; only those are compared.
    """
    bands = distance + 1  # at distance 64 one band is empty, and everything shares it
    edges = [round(64 * band / bands) for band in range(bands + 1)]
    found = [np.zeros((0, 2), np.int64)]
    for low, high in itertools.pairwise(edges):
        keys = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for shift in range(1, len(hashes)):
            together = np.flatnonzero(keys[shift:] == keys[:-shift])
            if not len(together):
                break
            pairs = np.stack([order[together], order[together + shift]], 1)
            near = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]) <= distance
            found.append(np.sort(pairs[near], 1))
    return np.unique(np.concatenate(found), axis=0)


def _images_by_answer(rows: Sequence[Signature]) -> dict[str, list[tuple[int, int]]]:
    images: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.reason is None:
            for answer in _answers(row):
                images[answer].extend((index, image) for image, value in enumerate(row.phash) if value is not None)
    return {answer: places for answer, places in images.items() if places}


def _video_answers(row: Signature) -> list[tuple[str, str]]:
    videos = [sha256 for sha256, phash in zip(row.sha256, row.phash, strict=True) if phash is None]
    return list(itertools.product(videos, _answers(row)))


def _answers(row: Signature) -> list[str]:
    return sorted({" ".join(answer.casefold().split()) for answer in row.answers})


def _ngrams(text: str | None, size: int) -> Iterator[tuple[str, ...]]:
    words = (text or "").casefold().split()
    if not words:
        return
    for start in range(max(1, len(words) - size + 1)):
        yield tuple(words[start : start + size])
