"""Short printed words in several typefaces, sizes and colours."""

import numpy as np
from PIL import Image, ImageDraw

from components.collect.embedded.config import EmbeddedConfig, WordsConfig
from components.collect.embedded.fonts import FACES, font
from components.collect.embedded.lexicon import split_words
from components.collect.embedded.sample import OURS, Maker, Sample, pick, png_media
from model.data.errors import InputError
from model.data.schema import scorer

SOURCE = "printed words"
_SMALLEST = 8  # pixels per em
_MARGIN = 2


def make_words(config: WordsConfig, corpus: EmbeddedConfig, *, heldout: bool) -> Maker:
    """Tasks ``word`` (read it) and ``last_letter``; held-out rows show held-out words.

    Raises:
        InputError: no word has a length in the configured range.
    """
    fewest, most = config.length
    words = [word for word in split_words(corpus.heldout_share, corpus.seed)[heldout] if fewest <= len(word) <= most]
    if not words:
        raise InputError(f"collect.embedded.words.length: no word has {fewest} to {most} letters")

    def make(task: str, rng: np.random.Generator) -> Sample:
        word = pick(rng, words)
        shown = word.upper() if rng.random() < 0.25 else word
        question, answer = ("Read the word.", word) if task == "word" else ("Last letter of the word?", word[-1])
        # Case is folded by the scorer, so an answer in capitals is right too.
        return Sample(question, answer, scorer("exact"), SOURCE, OURS, (png_media(draw_word(shown, config.size, rng)),))

    return make


def draw_word(word: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """``word`` anywhere in an image of ``size`` (width, height), in a random face, size and pair of colours."""
    face = pick(rng, FACES)
    largest = _fitting(word, face, size)
    face_size = int(rng.integers(max(_SMALLEST, round(largest * 0.6)), largest + 1))
    left, top, right, bottom = font(face, face_size).getbbox(word)
    x = rng.integers(_MARGIN, max(_MARGIN, size[0] - _MARGIN - (right - left)) + 1) - left
    y = rng.integers(_MARGIN, max(_MARGIN, size[1] - _MARGIN - (bottom - top)) + 1) - top
    dark, light = (tuple(rng.integers(*bounds, size=3).tolist()) for bounds in ((0, 90), (175, 256)))
    ink, paper = (light, dark) if rng.random() < 0.3 else (dark, light)
    image = Image.new("RGB", size, paper)
    ImageDraw.Draw(image).text((int(x), int(y)), word, fill=ink, font=font(face, face_size))
    return image


def _fitting(word: str, face: str, size: tuple[int, int]) -> int:
    """The largest size of ``face`` in which ``word`` fits: type grows in proportion to its size, nearly."""
    left, top, right, bottom = font(face, 100).getbbox(word)
    scale = min((size[0] - 2 * _MARGIN) / (right - left), (size[1] - 2 * _MARGIN) / (bottom - top))
    fitting = max(_SMALLEST, int(100 * scale))
    while fitting > _SMALLEST and _width(word, face, fitting) > size[0] - 2 * _MARGIN:
        fitting -= 1
    return fitting


def _width(word: str, face: str, size: int) -> float:
    left, _, right, _ = font(face, size).getbbox(word)
    return right - left
