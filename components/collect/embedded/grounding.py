"""Several coloured shapes on a canvas, and the box of the one that is asked for."""

import math

import numpy as np
from PIL import Image, ImageDraw

from components.collect.embedded.config import EmbeddedConfig, GroundingConfig
from components.collect.embedded.sample import OURS, Maker, Sample, between, png_media, thousandths
from model.data.schema import scorer

SOURCE = "coloured shapes"
COLOURS = {
    "red": "#d62728",
    "green": "#2ca02c",
    "blue": "#1f4fd8",
    "yellow": "#f2c500",
    "purple": "#8a2be2",
    "orange": "#ff7f0e",
    "black": "#111111",
    "pink": "#ff69b4",
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
_CELLS = 3  # shapes lie in cells of their own of a 3 x 3 grid
_SMALLEST = 0.45  # of a cell
_COMBINATION_STREAM = 2

Box = tuple[int, int, int, int]
Combination = tuple[str, str]


def make_grounding(config: GroundingConfig, corpus: EmbeddedConfig, *, heldout: bool) -> Maker:
    """Task ``ground``: held-out rows ask for a combination of colour and shape that no training image shows."""
    train, unseen = split_combinations(corpus.heldout_share, corpus.seed)

    def make(task: str, rng: np.random.Generator) -> Sample:
        count = between(rng, config.objects)
        others = train + unseen if heldout else train
        asked = (unseen if heldout else train)[int(rng.integers(len(unseen if heldout else train)))]
        rest = [other for other in others if other != asked]
        shown = [asked, *(rest[index] for index in rng.choice(len(rest), size=count - 1, replace=False))]
        image, boxes = draw_shapes(shown, config.canvas, rng)
        box = " ".join(f"{number:03d}" for number in thousandths(boxes[0], config.canvas, config.canvas))
        question = f"Where is the {' '.join(asked)}?"
        return Sample(question, box, scorer("box_iou", threshold=0.5), SOURCE, OURS, (png_media(image),))

    return make


def split_combinations(share: float, seed: int) -> tuple[list[Combination], list[Combination]]:
    """Training and held-out pairs of colour and shape, disjoint; each colour and each shape is left to training."""
    rng = np.random.default_rng([seed, _COMBINATION_STREAM])
    everything = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    left = {word: sum(word in pair for pair in everything) for word in (*COLOURS, *SHAPES)}
    heldout: list[Combination] = []
    for index in rng.permutation(len(everything)).tolist():
        pair = everything[index]
        if len(heldout) < max(1, round(share * len(everything))) and all(left[word] > 1 for word in pair):
            heldout.append(pair)
            for word in pair:
                left[word] -= 1
    return [pair for pair in everything if pair not in heldout], sorted(heldout)


def draw_shapes(shown: list[Combination], side: int, rng: np.random.Generator) -> tuple[Image.Image, list[Box]]:
    """An image of these shapes, and the boxes of their pixels (right and bottom exclusive)."""
    image = Image.new("RGB", (side, side), tuple(rng.integers(225, 256, size=3).tolist()))
    cell = side // _CELLS
    boxes = []
    for (colour, shape), place in zip(shown, rng.permutation(_CELLS**2).tolist(), strict=False):
        size = between(rng, (math.ceil(_SMALLEST * cell), cell - 2))
        mask = shape_mask(shape, size)
        ink = mask.getbbox()
        assert ink is not None
        row, column = divmod(place, _CELLS)
        x = column * cell + between(rng, (0, cell - mask.width))
        y = row * cell + between(rng, (0, cell - mask.height))
        image.paste(COLOURS[colour], (x, y), mask)
        boxes.append((x + ink[0], y + ink[1], x + ink[2], y + ink[3]))
    return image, boxes


def shape_mask(shape: str, size: int) -> Image.Image:
    """A shape of at most ``size`` x ``size`` pixels, 255 where it is."""
    mask = Image.new("L", (size, size))
    draw, end = ImageDraw.Draw(mask), size - 1
    match shape:
        case "circle":
            draw.ellipse((0, 0, end, end), fill=255)
        case "square":
            draw.rectangle((0, 0, end, end), fill=255)
        case "triangle":
            draw.polygon(((end / 2, 0), (end, end), (0, end)), fill=255)
        case "diamond":
            draw.polygon(((end / 2, 0), (end, end / 2), (end / 2, end), (0, end / 2)), fill=255)
        case "cross":
            third = size / 3
            draw.rectangle((third, 0, end - third, end), fill=255)
            draw.rectangle((0, third, end, end - third), fill=255)
        case _:
            draw.polygon(_star(end), fill=255)
    return mask


def _star(end: int) -> list[tuple[float, float]]:
    """Five points on a circle, and five between them nearer to its middle."""
    middle = end / 2
    corners = []
    for number in range(10):
        radius, angle = middle * (0.4 if number % 2 else 1.0), math.pi * (number / 5 - 0.5)
        corners.append((middle + radius * math.cos(angle), middle + radius * math.sin(angle)))
    return corners
