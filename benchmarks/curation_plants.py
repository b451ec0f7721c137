"""Duplicates to plant: pictures encoded again, resized, cropped by 5 %; captions paraphrased; texts with a new word."""

import re
from collections.abc import Callable

import numpy as np
from PIL import Image

CROP = 0.05
_SYNONYMS = {
    "photo": "picture",
    "shows": "depicts",
    "near": "close to",
    "waits": "stands waiting",
    "is seen": "can be seen",
}
_FRONTED = re.compile(r"^The photo shows (a .+?) that (.+) near (.+?) ((?:at|in|on|before) [a-z ]+)\.$")


def reencoded(image: Image.Image) -> Image.Image:
    """The same pixels: the caller encodes them at a lower quality."""
    return image


def resized(image: Image.Image) -> Image.Image:
    """0.7 of the size."""
    return image.resize((round(image.width * 0.7), round(image.height * 0.7)), Image.Resampling.LANCZOS)


def cropped(image: Image.Image) -> Image.Image:
    """Without 5 % of the width and of the height, half of it at either side."""
    width, height = image.width * CROP / 2, image.height * CROP / 2
    return image.crop((round(width), round(height), round(image.width - width), round(image.height - height)))


def synonyms(caption: str) -> str:
    """The same sentence with other words for five of its words."""
    for word, other in _SYNONYMS.items():
        caption = caption.replace(word, other)
    return caption


def fronted(caption: str) -> str:
    """The time to the front, the subject behind it."""
    found = _FRONTED.match(caption)
    if found is None:
        raise ValueError(f"not a caption of the benchmark: {caption}")
    subject, verb, place, time = found.groups()
    return f"{time[0].upper()}{time[1:]}, {subject} {verb} near {place}, as the photo shows."


def typo(text: str, rng: np.random.Generator) -> str:
    """One word of a long text is another."""
    words = text.split()
    words[int(rng.integers(len(words)))] = "indeed"
    return " ".join(words)


PICTURES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": reencoded,
    "resized": resized,
    "cropped 5 %": cropped,
}
CAPTIONS: dict[str, Callable[[str], str]] = {"synonyms": synonyms, "fronted": fronted}
