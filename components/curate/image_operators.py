"""Operators on what ``decode`` says about images, and on their grey levels: size, aspect, entropy, blur."""

from collections.abc import Callable, Iterable
from typing import Any

import daft
import numpy as np
from daft import DataType, Expression, Series, col
from PIL import Image

from components.curate.recipe import Aspect, Blur, Entropy, Size
from model.flash.images import read_image

_MEASURED_SIDE = 512
_ANY_PIXELS = 1 << 62  # decode has refused what is too large


def size(section: Size) -> Expression:
    """Images whose shorter side is too short, or whose longer side is too long."""
    return _size(col("width"), col("height"), section)


def aspect(section: Aspect) -> Expression:
    """Images that are much longer one way than the other."""
    return _aspect(col("width"), col("height"), section)


def entropy(section: Entropy) -> Expression:
    """Images of too few grey levels; fact ``entropy``, bits per pixel of each image."""
    return _entropy(col("media"), col("reason"), section)


def blur(section: Blur) -> Expression:
    """Images without edges; fact ``sharpness``, the variance of the Laplacian of each image."""
    return _blur(col("media"), col("reason"), section)


def grey_entropy(grey: np.ndarray) -> float:
    """Shannon entropy of the levels of uint8 [H, W], in bits per pixel: -sum p log2 p (Shannon 1948, section 6)."""
    share = np.bincount(grey.ravel(), minlength=256) / grey.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum()) + 0.0


def laplacian_variance(grey: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian of uint8 [H, W] over its inner pixels; 0 where there are none.

    Source: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a comparative study" (ICPR 2000).
    """
    levels = grey.astype(np.int32)
    centre = levels[1:-1, 1:-1]
    if not centre.size:
        return 0.0
    around = levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:]
    return float(np.var(around - 4 * centre))


def measured_grey(data: bytes) -> np.ndarray:
    """An image as it is measured: uint8 [H, W], grey, upright, reduced to at most 512 pixels a side."""
    image = read_image(data, len(data), _ANY_PIXELS).convert("L")
    image.thumbnail((_MEASURED_SIDE, _MEASURED_SIDE), Image.Resampling.BOX, reducing_gap=None)
    return np.asarray(image)


def _first(reasons: Iterable[str | None]) -> str | None:
    """The first reason among the images of a row, with its number."""
    return next((f"media[{index}]: {reason}" for index, reason in enumerate(reasons) if reason), None)


_REASON = DataType.struct({"reason": DataType.string()})


@daft.func.batch(return_dtype=_REASON, use_process=False)
def _size(width: Series, height: Series, section: Size) -> list[dict[str, Any]]:
    def reason(w: int | None, h: int | None) -> str | None:
        if w is None or h is None:
            return None
        if min(w, h) < section.min_side:
            return f"{w} x {h} pixels; the least is {section.min_side} a side"
        return f"{w} x {h} pixels; the most is {section.max_side} a side" if max(w, h) > section.max_side else None

    return _by_sides(width, height, reason)


@daft.func.batch(return_dtype=_REASON, use_process=False)
def _aspect(width: Series, height: Series, section: Aspect) -> list[dict[str, Any]]:
    def reason(w: int | None, h: int | None) -> str | None:
        if w is None or h is None or max(w, h) <= section.largest * min(w, h):
            return None
        return f"{w} x {h} pixels; the longer side is more than {section.largest:g} times the shorter"

    return _by_sides(width, height, reason)


def _by_sides(
    width: Series, height: Series, reason: Callable[[int | None, int | None], str | None]
) -> list[dict[str, Any]]:
    """``reason`` of every image; rows that were rejected before decode have no sides."""
    columns = zip(width.to_pylist(), height.to_pylist(), strict=True)
    return [{"reason": _first(map(reason, widths or (), heights or ()))} for widths, heights in columns]


def _measures(name: str) -> DataType:
    return DataType.struct({"reason": DataType.string(), name: DataType.list(DataType.float64())})


@daft.func.batch(return_dtype=_measures("entropy"), use_process=False)
def _entropy(media: Series, reason: Series, section: Entropy) -> list[dict[str, Any]]:
    def why(bits: float) -> str | None:
        return f"{bits:.2f} bits a pixel; the least is {section.min_bits:g}" if bits < section.min_bits else None

    return _measured(media, reason, "entropy", grey_entropy, why)


@daft.func.batch(return_dtype=_measures("sharpness"), use_process=False)
def _blur(media: Series, reason: Series, section: Blur) -> list[dict[str, Any]]:
    def why(variance: float) -> str | None:
        short = variance < section.min_variance
        return f"Laplacian of variance {variance:.1f}; the least is {section.min_variance:g}" if short else None

    return _measured(media, reason, "sharpness", laplacian_variance, why)


def _measured(
    media: Series,
    reason: Series,
    name: str,
    measure: Callable[[np.ndarray], float],
    why: Callable[[float], str | None],
) -> list[dict[str, Any]]:
    """``measure`` of the grey levels of every image, and why one is no good; videos are passed over."""
    found = []
    for row, earlier in zip(media.to_pylist(), reason.to_pylist(), strict=True):
        if earlier is not None:
            found.append({"reason": None, name: None})
            continue
        values = [measure(measured_grey(m["bytes"])) if m["kind"] == "image" else None for m in row]
        found.append({"reason": _first(None if v is None else why(v) for v in values), name: values})
    return found
