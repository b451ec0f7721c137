"""Boxes and points: read one from an answer, intersection over union, whether a point lies in a box.

A box is (x1, y1, x2, y2), the corners in any one unit; the embedded corpus writes integers in thousandths of the
image's width and height, "120 80 360 410".
"""

import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]

_NUMBER = r"[-+]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})"
_BETWEEN = r"[\s,;()\[\]]+"
# Four numbers in a row with nothing but separators between them; the digits of words ("bbox_2d") do not count.
_BOX = re.compile(
    rf"(?<![\w.+-])({_NUMBER}){_BETWEEN}({_NUMBER}){_BETWEEN}({_NUMBER}){_BETWEEN}({_NUMBER})(?![\w.]*\w)"
)
# Two or more numbers in a row, whole: the first such run is the point.
_RUN = re.compile(rf"(?<![\w.+-]){_NUMBER}(?:{_BETWEEN}{_NUMBER})+(?![\w.]*\w)")
_MAX_TEXT = 4096

Point = tuple[float, float]


def parse_box(text: str) -> Box | None:
    """The first four numbers in a row in ``text``, or None.

    White space, commas, semicolons and brackets may stand between them: "1 2 3 4", "[1, 2, 3, 4]",
    "(1,2),(3,4)" and '{"bbox_2d": [1, 2, 3, 4]}' are the same box. Swapped corners are put in order.
    Texts over 4,096 characters state no box.
    """
    if len(text) > _MAX_TEXT or (match := _BOX.search(text)) is None:
        return None
    x1, y1, x2, y2 = (float(number) for number in match.groups())
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def parse_point(text: str) -> Point | None:
    """The point that ``text`` states, or None: its first two numbers in a row, "512 430", "(512, 430)",
    '{"point_2d": [512, 430]}'.

    Four numbers in a row are a box, and stand for its middle. Of three, or of more, nothing is read.
    Texts over 4,096 characters state no point.
    """
    if len(text) > _MAX_TEXT or (match := _RUN.search(text)) is None:
        return None
    numbers = [float(number) for number in re.findall(_NUMBER, match.group())]
    match numbers:
        case [x, y]:
            return x, y
        case [x1, y1, x2, y2]:
            return (x1 + x2) / 2, (y1 + y2) / 2
        case _:
            return None


def point_hit(point: Point, references: Sequence[Box]) -> float:
    """1.0 when ``point`` lies in a reference box, its edges included, else 0.0."""
    x, y = point
    return float(any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in references))


def format_box(box: Sequence[float]) -> str:
    """The answer text of a box: four integers separated by spaces."""
    return " ".join(str(round(value)) for value in box)


def box_area(box: Box) -> float:
    """Area in the unit of the box, squared."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union in [0, 1]; 0 when either box has no area."""
    intersection = box_area(
        (max(first[0], second[0]), max(first[1], second[1]), min(first[2], second[2]), min(first[3], second[3]))
    )
    union = box_area(first) + box_area(second) - intersection
    return intersection / union if intersection > 0 else 0.0


def box_hit(box: Box, references: Sequence[Box], threshold: float = 0.5) -> float:
    """1.0 when the IoU with a reference is at least ``threshold``, else 0.0."""
    return float(any(box_iou(box, reference) >= threshold for reference in references))
