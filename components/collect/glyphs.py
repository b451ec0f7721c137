"""scikit-learn's handwritten digits, split so that no held-out glyph occurs in training."""

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits

SOURCE = "scikit-learn digits"
LICENSE = "CC-BY-4.0"
_FULL_INK = 16  # the glyphs are counts of black pixels in 4 x 4 blocks


@dataclass(frozen=True)
class Glyphs:
    """A pool of glyphs.

    Attributes:
        images: uint8 [N, 8, 8], 0 for paper to 255 for ink.
        labels: uint8 [N], the digit each one shows.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, digit: int) -> np.ndarray:
        """Indices [M] of the glyphs that show ``digit``."""
        return np.flatnonzero(self.labels == digit)


def load_glyphs() -> Glyphs:
    """All 1,797 glyphs (UCI Optical Recognition of Handwritten Digits, its test set)."""
    digits = load_digits()
    images = np.round(digits.images * (255 / _FULL_INK)).astype(np.uint8)
    return Glyphs(images, digits.target.astype(np.uint8))


def split_glyphs(glyphs: Glyphs, heldout_share: float, seed: int) -> tuple[Glyphs, Glyphs]:
    """Training pool and held-out pool, disjoint by index and by pixels.

    The share holds within each digit. A training glyph whose pixels equal a held-out glyph's is left out.

    Raises:
        ValueError: a pool would lack a digit.
    """
    rng = np.random.default_rng([seed, 0])
    heldout: list[int] = []
    for label in np.unique(glyphs.labels):
        members = rng.permutation(np.flatnonzero(glyphs.labels == label))
        count = min(max(1, round(heldout_share * len(members))), len(members) - 1)
        if count < 1:
            raise ValueError(f"digit {label} has too few glyphs to split")
        heldout.extend(members[:count].tolist())
    taken = {glyphs.images[index].tobytes() for index in heldout}
    outside = sorted(set(range(len(glyphs))) - set(heldout))
    train = [index for index in outside if glyphs.images[index].tobytes() not in taken]
    return _pool(glyphs, train), _pool(glyphs, sorted(heldout))


def _pool(glyphs: Glyphs, indices: list[int]) -> Glyphs:
    return Glyphs(glyphs.images[indices], glyphs.labels[indices])
