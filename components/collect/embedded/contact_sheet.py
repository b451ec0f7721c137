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

_CELL = (344, 336)
_COLUMNS = 5
_PICTURE = 224  # height of the room for media
_GAP = 6
_FRAMES = 4


def contact_sheet(rows: list[Row]) -> Image.Image:
    """All ``rows`` on one picture, in order."""
    lines = -(-len(rows) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _CELL[0], lines * _CELL[1]), "white")
    for number, row in enumerate(rows):
        line, column = divmod(number, _COLUMNS)
        sheet.paste(_cell(row), (column * _CELL[0], line * _CELL[1]))
    return sheet


def _cell(row: Row) -> Image.Image:
    cell = Image.new("RGB", _CELL, "white")
    draw = ImageDraw.Draw(cell)
    draw.text((_GAP, _GAP), row["task"], fill="#4c78a8", font=font(BOLD, 13))
    x = _GAP
    pictures = _pictures(row)
    for picture in pictures:
        room = ((_CELL[0] - _GAP) // len(pictures) - _GAP, _PICTURE)
        scale = min(room[0] / picture.width, room[1] / picture.height, 2)
        shown = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        cell.paste(shown, (x, 24))
        x += shown.width + _GAP
    question = row["messages"][0]["content"].splitlines()[-1]
    answer = row["messages"][-1]["content"]
    y = 24 + _PICTURE + _GAP
    for text, face, most in ((question, BOLD, 2), (answer, SANS, 4)):
        for part in textwrap.wrap(text, 50, max_lines=most, placeholder=" ..."):
            draw.text((_GAP, y), part, fill="#222222", font=font(face, 11))
            y += 14
    draw.rectangle((0, 0, _CELL[0] - 1, _CELL[1] - 1), outline="#dddddd")
    return cell


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
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = EmbeddedConfig.model_validate({"seed": arguments.seed, **{family: {"rows": 1} for family in FAMILIES}})
    contact_sheet(list(embedded_rows(config)[0])).quantize(64).save(arguments.output, "PNG", optimize=True)


if __name__ == "__main__":
    main()
