"""The mix of rows that the packing benchmark is about, named ``text-and-tiles``. Imports no torch.

- Text-only to multimodal rows are 2 : 5 (the published 1 : 2.5), evenly spread.
- A text-only row has a lognormal number of tokens: median 1,000, sigma 1.2, cut to 32 and 16,384; 1,915 in the mean.
- A multimodal row has one image of 1 to 13 tiles (each as likely) of 256 tokens, two tags, and a lognormal text:
  median 120, sigma 0.8, cut to 16 and 2,048; 165 in the mean.

That is 389 tokens to a tile, and the published budgets allow 32,768 / 96 = 341: tokens bind, tiles nearly do.
``scale`` divides every length, so that the same mix trains on a CPU: at 16 a tile has 16 tokens, a pack 2,048.
"""

from dataclasses import dataclass

import numpy as np

from model.families.interface import Size
from model.training.mixture import pattern

NAME = "text-and-tiles"
MAX_TOKENS, MAX_TILES = 32768, 96
LOOKAHEAD = 256
TILE_TOKENS = 256
TAGS = 2
TEXT_TO_MULTIMODAL = (2, 5)


@dataclass(frozen=True)
class MixRow:
    """One row of the mix: tokens of text, and tiles of its image (0: text-only), at a scale."""

    text_tokens: int
    tiles: int
    scale: int

    @property
    def size(self) -> Size:
        """What the row takes from a pack."""
        image = TAGS + self.tiles * TILE_TOKENS // self.scale if self.tiles else 0
        return Size(self.text_tokens + image, self.tiles)


def rows(count: int, seed: int, scale: int = 1) -> list[MixRow]:
    """``count`` rows of the mix, in the order of their stream."""
    rng = np.random.default_rng(seed)
    sources = pattern(TEXT_TO_MULTIMODAL)
    made = []
    for i in range(count):
        if sources[i % len(sources)] == 0:
            made.append(MixRow(_length(rng, 1000, 1.2, 32, 16384) // scale, 0, scale))
        else:
            made.append(MixRow(_length(rng, 120, 0.8, 16, 2048) // scale, int(rng.integers(1, 14)), scale))
    return made


def _length(rng: np.random.Generator, median: float, sigma: float, low: int, high: int) -> int:
    return int(np.clip(rng.lognormal(np.log(median), sigma), low, high))
