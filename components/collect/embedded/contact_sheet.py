"""A picture of rows of the embedded corpus: ``python -m components.collect.embedded.contact_sheet docs/corpus.png``.

One cell per task: its media (a video as four of its frames), the question, and the answer.
"""

import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw

from components.collect.embedded.config import EmbeddedConfig
from components.collect.embedded.fonts import BOLD, SANS, font
from components.collect.embedded.rows import FAMILIES, embedded_rows
from model.data.schema import Row
from model.data.video import FrameSampling, row_media

_WIDTH = 344  # of a cell, in pixels
_COLUMNS = 5
_PICTURE = 230  # most height of the media
_LARGEST = 3  # times as large as they are
_GAP = 6
_FRAMES = 4
_QUESTION_LINES, _ANSWER_LINES = 2, 5


def contact_sheet(rows: list[Row]) -> Image.Image:
    """All ``rows`` on one picture, in order; a line of cells is as high as the highest of them."""
    cells = [_cell(row) for row in rows]
    lines = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
    heights = [max(cell.height for cell in line) for line in lines]
    sheet = Image.new("RGB", (_COLUMNS * _WIDTH, sum(heights)), "white")
    y = 0
    for line, height in zip(lines, heights, strict=True):
        for column, cell in enumerate(line):
            sheet.paste(cell, (column * _WIDTH, y))
        y += height
        ImageDraw.Draw(sheet).line((0, y - 1, sheet.width, y - 1), fill="#cccccc")
    return sheet


def _cell(row: Row) -> Image.Image:
    cell = Image.new("RGB", (_WIDTH, 400), "white")
    draw = ImageDraw.Draw(cell)
    draw.text((_GAP, _GAP), row["task"], fill="#4c78a8", font=font(BOLD, 13))
    x, y, pictures = _GAP, 24, _pictures(row)
    below = y
    for picture in pictures:
        room = (_WIDTH - _GAP) // len(pictures) - _GAP
        scale = min(room / picture.width, _PICTURE / picture.height, _LARGEST)
        shown = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        cell.paste(shown, (x, y))
        x, below = x + shown.width + _GAP, max(below, y + shown.height)
    y = below + _GAP
    question, answer = row["messages"][0]["content"].splitlines()[-1], row["messages"][-1]["content"]
    for text, face, most in ((question, BOLD, _QUESTION_LINES), (answer, SANS, _ANSWER_LINES)):
        for part in textwrap.wrap(text, 50, max_lines=most, placeholder=" ..."):
            draw.text((_GAP, y), part, fill="#222222", font=font(face, 11))
            y += 14
    return cell.crop((0, 0, _WIDTH, y + _GAP))


def _pictures(row: Row) -> list[Image.Image]:
    pictures = []
    # A row's own rate would give every frame.
    media = [medium | {"fps": None} for medium in row["media"]]
    for medium in row_media(row | {"media": media}, FrameSampling(frames=_FRAMES)):  # type: ignore[arg-type, typeddict-item]
        pictures += [medium] if isinstance(medium, Image.Image) else medium.frames
    return pictures


def main() -> None:
    """Draw one training row of every task and write the sheet."""
    parser = argparse.ArgumentParser(description="A picture of the embedded corpus: one row of every task.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    config = EmbeddedConfig.model_validate({"seed": arguments.seed, **{family: {"rows": 1} for family in FAMILIES}})
    sheet = contact_sheet(list(embedded_rows(config)[0]))
    sheet.quantize(256, kmeans=4, dither=Image.Dither.NONE).save(arguments.output, "PNG", optimize=True)


if __name__ == "__main__":
    main()
