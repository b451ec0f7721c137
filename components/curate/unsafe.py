"""``unsafe``: images and sampled video frames that NudeNet's small detector (the ONNX file of its wheel) objects to."""

from pathlib import Path
from typing import Any, get_args

import daft
import numpy as np
from daft import DataType, Expression, Series, col
from PIL import Image

from components.curate.model_sections import Unsafe, UnsafeClass
from components.curate.onnx_models import onnx_session, wheel_file
from model.data.errors import InputError
from model.data.video import FrameSampling, read_medium

CLASSES: tuple[str, ...] = get_args(UnsafeClass)
_SIDE = 320
_LARGEST_SIDE = 8192
_BOX = 4  # the first outputs of an anchor are its box
_FOUND = DataType.struct({"reason": DataType.string(), "unsafe_score": DataType.float64()})


def unsafe(section: Unsafe) -> Expression:
    """Why a row is refused. Fact ``unsafe_score``: highest score of a refused class, null without images.

    Raises:
        InputError: the model is not installed.
    """
    _model_file()  # here, where the error ends the step; an error about a row only rejects that row
    return _judge(col("media"), col("reason"), section)


def _model_file() -> Path:
    return wheel_file("nudenet", "nudenet", "320n.onnx")


def class_scores(image: Image.Image) -> np.ndarray:
    """Highest score of every class over all places of an RGB image: float32 [classes], in the order of ``CLASSES``.

    Boxes are not needed, and the best score of a class survives any suppression of boxes. The image is laid in the
    upper left of a black square and scaled to 320 x 320, as the model was trained.
    """
    if max(image.size) > _LARGEST_SIDE:  # the square of a strip of few pixels would take gigabytes
        image = image.copy()
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), reducing_gap=None)
    side = max(image.size)
    square = Image.new("RGB", (side, side))
    square.paste(image)
    pixels = np.asarray(square.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), np.float32) / 255
    session = onnx_session(_model_file())
    (output,) = session.run(None, {session.get_inputs()[0].name: pixels.transpose(2, 0, 1)[None]})
    return output[0, _BOX:].max(axis=1)


def judge(media: list[dict[str, Any]], section: Unsafe) -> tuple[str | None, float | None]:
    """Why a row with ``media`` is refused (None: it is not), and the highest score of a refused class.

    Raises:
        InputError: a medium cannot be read.
    """
    refused = [CLASSES.index(name) for name in section.classes]
    sampling = FrameSampling(frames=section.video_frames)
    best, reason = None, None
    for number, medium in enumerate(media):
        try:
            decoded = read_medium(medium | {"fps": None}, sampling)
        except InputError as error:
            raise InputError(f"media[{number}]: {error}") from error
        for image in [decoded] if isinstance(decoded, Image.Image) else decoded.frames:
            scores = class_scores(image)[refused]
            worst = int(scores.argmax())
            score = round(float(scores[worst]), 4)
            if best is None or score > best:
                best = score
                reason = (
                    f"media[{number}] shows {section.classes[worst]} ({score:.2f}; the limit is {section.min_score})"
                )
    return (reason if best is not None and best >= section.min_score else None), best


@daft.func.batch(return_dtype=_FOUND, use_process=False)
def _judge(media: Series, reason: Series, section: Unsafe) -> list[dict[str, Any]]:
    found = []
    for row, earlier in zip(media.to_pylist(), reason.to_pylist(), strict=True):
        try:
            why, score = (None, None) if earlier is not None else judge(row, section)
        except InputError as error:
            why, score = str(error), None
        found.append({"reason": why, "unsafe_score": score})
    return found
