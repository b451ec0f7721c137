"""Reads upright printed text with the PP-OCRv4 models that lie in the wheel rapidocr-onnxruntime.

DBNet (arXiv 1911.08947) marks pixels of text, a CTC network reads each line. Rendered text is horizontal, so lines are
boxes along the axes: connected components, in place of contours and rotated rectangles.
"""

import functools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from components.curate.onnx_models import onnx_session, wheel_file

_PACKAGE = ("rapidocr_onnxruntime", "rapidocr-onnxruntime", "models")
_DETECTOR, _READER = "ch_PP-OCRv4_det_infer.onnx", "ch_PP-OCRv4_rec_infer.onnx"
_SHORT_SIDE, _LONG_SIDE = 320, 2016  # least and most of the image that the detector sees, in pixels
_STRIDE = 32
_TEXT, _LINE = 0.3, 0.5  # least probability of a pixel of text, and on average of a line
_UNCLIP = 1.6  # the detector marks shrunk lines; they grow by area * this / circumference
_LEAST_SIDE = 3
_MAX_LINES = 1000
_LINE_HEIGHT, _LINE_WIDTH = 48, 320  # of a line that the reader sees; longer ones are wider
_LONGEST_LINE = 4800
_LEAST_CONFIDENCE = 0.5


class Box(NamedTuple):
    """A line of text in pixels; ``right`` and ``bottom`` lie outside."""

    left: int
    top: int
    right: int
    bottom: int


def reader_files() -> tuple[Path, Path]:
    """Files of the detector and the reader.

    Raises:
        InputError: the wheel is not installed.
    """
    return wheel_file(*_PACKAGE, _DETECTOR), wheel_file(*_PACKAGE, _READER)


def read_lines(image: Image.Image) -> list[str]:
    """The lines of text in an RGB image, from top to bottom, and from left to right where they stand side by side."""
    lines = []
    for box in find_lines(image):
        text, confidence = _read_line(image.crop(box))
        if text.strip() and confidence >= _LEAST_CONFIDENCE:
            lines.append(text.strip())
    return lines


def find_lines(image: Image.Image) -> list[Box]:
    """Where lines of text stand, in reading order."""
    from scipy import ndimage

    scale = max(1.0, _SHORT_SIDE / min(image.size))
    scale = min(scale, _LONG_SIDE / max(image.size))
    size = tuple(max(_STRIDE, round(side * scale / _STRIDE) * _STRIDE) for side in image.size)
    session = onnx_session(reader_files()[0])
    (output,) = session.run(None, {session.get_inputs()[0].name: _pixels(image.resize(size, _BILINEAR))})
    text_HW = output[0, 0]
    labels, _ = ndimage.label(text_HW > _TEXT, structure=np.ones((3, 3)))
    boxes = []
    for rows, columns in ndimage.find_objects(labels)[:_MAX_LINES]:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if min(height, width) < _LEAST_SIDE or text_HW[rows, columns].mean() < _LINE:
            continue
        grow = height * width * _UNCLIP / (2 * (height + width))
        corners = (columns.start - grow, rows.start - grow, columns.stop + grow, rows.stop + grow)
        boxes.append(_in_image(corners, size, image.size))
    return _reading_order(boxes)


_BILINEAR = Image.Resampling.BILINEAR


def _pixels(image: Image.Image) -> np.ndarray:
    """float32 [1, 3, H, W] in [-1, 1], blue first: the models were trained on OpenCV's order."""
    return ((np.asarray(image, np.float32)[..., ::-1] / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]


def _in_image(corners: tuple[float, ...], seen: tuple[int, ...], size: tuple[int, int]) -> Box:
    """A box of the picture that the detector saw, as one of the image, cut at its edges."""
    bounds = (*size, *size)
    scaled = [corner * bounds[axis] / seen[axis % 2] for axis, corner in enumerate(corners)]
    left, top = (max(0, math.floor(value)) for value in scaled[:2])
    right, bottom = (min(side, math.ceil(value)) for side, value in zip(size, scaled[2:], strict=True))
    return Box(left, top, max(left + 1, right), max(top + 1, bottom))


def _reading_order(boxes: list[Box]) -> list[Box]:
    """From top to bottom; boxes whose middle lies within the first one of a row stand beside it, from left to right."""
    left = sorted(boxes, key=lambda box: (box.top + box.bottom, box.left))
    ordered: list[Box] = []
    while left:
        first = left[0]
        row = [box for box in left if first.top <= (box.top + box.bottom) / 2 < first.bottom]
        ordered.extend(sorted(row, key=lambda box: box.left))
        left = [box for box in left if box not in row]
    return ordered


def _read_line(line: Image.Image) -> tuple[str, float]:
    """Text of a line and the mean confidence of its characters (0 for none); CTC, best path."""
    width = min(_LONGEST_LINE, max(1, math.ceil(_LINE_HEIGHT * line.width / line.height)))
    padded = np.zeros((1, 3, _LINE_HEIGHT, max(_LINE_WIDTH, width)), np.float32)
    padded[..., :width] = _pixels(line.resize((width, _LINE_HEIGHT), _BILINEAR))
    session = onnx_session(reader_files()[1])
    (output,) = session.run(None, {session.get_inputs()[0].name: padded})
    best, probability = output[0].argmax(axis=1), output[0].max(axis=1)
    characters = _characters()
    starts = np.flatnonzero((best > 0) & np.append(True, best[1:] != best[:-1]))
    text = "".join(characters[best[place]] for place in starts)
    return text, float(probability[starts].mean()) if len(starts) else 0.0


@functools.cache
def _characters() -> tuple[str, ...]:
    """What the reader's outputs mean: 0 is the blank of CTC, the last one a space."""
    known = onnx_session(reader_files()[1]).get_modelmeta().custom_metadata_map["character"]
    return ("", *known.splitlines(), " ")
