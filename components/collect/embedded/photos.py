"""Photographs that scikit-image's wheel carries, and what was done to a piece of them."""

from collections.abc import Callable
from functools import lru_cache
from typing import get_args

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from components.collect.embedded.config import EmbeddedConfig, Photo, PhotosConfig
from components.collect.embedded.fonts import package_directory
from components.collect.embedded.sample import Maker, Sample, pick, png_media
from model.data.schema import scorer

SOURCE = "scikit-image"
_PUBLIC_DOMAIN = "LicenseRef-public-domain"
# File, licence as scikit-image states it, whether top and bottom can be told apart.
_PHOTOS: dict[Photo, tuple[str, str, bool]] = {
    "astronaut": ("astronaut.png", _PUBLIC_DOMAIN, True),
    "brick": ("brick.png", "CC0-1.0", False),
    "camera": ("camera.png", "CC0-1.0", True),
    "chelsea": ("chelsea.png", "CC0-1.0", True),
    "clock": ("clock_motion.png", _PUBLIC_DOMAIN, True),
    "coffee": ("coffee.png", "CC0-1.0", True),
    "hubble": ("hubble_deep_field.jpg", _PUBLIC_DOMAIN, False),
    "rocket": ("rocket.jpg", _PUBLIC_DOMAIN, True),
}
_LEFT, _HALF, _RIGHT = (Image.Transpose[f"ROTATE_{angle}"] for angle in (90, 180, 270))
ROTATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "upright": lambda image: image,
    "turned left": lambda image: image.transpose(_LEFT),
    "upside down": lambda image: image.transpose(_HALF),
    "turned right": lambda image: image.transpose(_RIGHT),
}
CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "rotated 90": lambda image: image.transpose(_RIGHT),
    "rotated 180": lambda image: image.transpose(_HALF),
    "rotated 270": lambda image: image.transpose(_LEFT),
    "mirrored": ImageOps.mirror,
    "flipped": ImageOps.flip,
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(2.5)),
    "inverted": ImageOps.invert,
    "brighter": lambda image: image.point(lambda level: min(255, level + 60)),
    "darker": lambda image: image.point(lambda level: max(0, level - 60)),
    "gray": lambda image: ImageOps.grayscale(image).convert("RGB"),
}
_QUESTIONS = {
    "photo_change": "What was done to the second image?",
    "photo_rotation": "Is the photograph upright, upside down, turned left or turned right?",
}
_APART = 6.0  # grey levels, in the mean: two changes that look more alike than this are not asked about


def make_photos(config: PhotosConfig, corpus: EmbeddedConfig, *, heldout: bool) -> Maker:
    """Tasks ``photo_change`` (a piece and the changed piece) and ``photo_rotation``; whole photographs are held out."""
    photos = [name for name in get_args(Photo) if (name in config.heldout_photos) == heldout]

    def make(task: str, rng: np.random.Generator) -> Sample | None:
        name: Photo = pick(rng, photos)  # type: ignore[assignment]
        _, licence, upright = _PHOTOS[name]
        # Which way is up shows in nearly the whole photograph; what was done to a piece shows in any.
        share = rng.uniform(*((0.85, 1.0) if task == "photo_rotation" else (0.5, 0.8)))
        piece = _piece(name, config.side, share, rng)
        if task == "photo_rotation":
            if not upright:
                return None
            answer = pick(rng, list(ROTATIONS))
            shown = [ROTATIONS[answer](piece)]
        else:
            answer = pick(rng, list(CHANGES))
            shown = [piece, CHANGES[answer](piece)]
            if not _distinct(answer, *shown):
                return None
        media = tuple(png_media(image) for image in shown)
        return Sample(_QUESTIONS[task], answer, scorer("exact"), f"{SOURCE} {name}", licence, media)

    return make


@lru_cache(maxsize=len(_PHOTOS))
def load_photo(name: Photo) -> Image.Image:
    """A photograph in RGB, at most 640 pixels a side.

    Raises:
        InputError: scikit-image is not installed.
    """
    with Image.open(package_directory("skimage") / "data" / _PHOTOS[name][0]) as image:
        photo = image.convert("RGB")
    photo.thumbnail((640, 640))
    return photo


def _piece(name: Photo, side: int, share: float, rng: np.random.Generator) -> Image.Image:
    """A square piece anywhere, ``share`` of the shorter side wide, scaled to ``side`` pixels."""
    photo = load_photo(name)
    edge = int(share * min(photo.size))
    left, top = (int(rng.integers(length - edge + 1)) for length in photo.size)
    return photo.resize((side, side), Image.Resampling.BILINEAR, (left, top, left + edge, top + edge))


def _distinct(answer: str, before: Image.Image, after: Image.Image) -> bool:
    """Whether what is shown differs from the piece itself and from every other change of it."""
    shown = np.asarray(after).astype(np.int16)
    others = [before, *(change(before) for name, change in CHANGES.items() if name != answer)]
    return all(np.abs(shown - np.asarray(other)).mean() >= _APART for other in others)
