"""Text pages: blocks of headings, fields, paragraphs and tables, set from the top down in one of several layouts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from components.collect.embedded.config import PageLayout
from components.collect.embedded.fonts import font
from components.collect.embedded.sample import between, pick

Box = tuple[int, int, int, int]
Tag = Literal["h2", "p", "table"]

_FIELDS = ("Name", "Date", "City", "Order", "Phone", "Total", "Agent", "Room")
_COLUMNS = (("Item", "Count", "Price"), ("Part", "Stock", "Cost"), ("Ware", "Pieces", "Sum"))
_FACES = (("DejaVuSans", "DejaVuSans-Bold"), ("DejaVuSerif", "DejaVuSerif-Bold"), ("STIXGeneral", "STIXGeneralBol"))
_TEXT, _HEADING = 11, 16  # pixels per em
# Pixels, smallest and largest: from the edge to the text, from one line to the next, from one block to the next.
_MARGIN, _LINE, _GAP = (12, 28), (15, 18), (9, 16)


@dataclass(frozen=True)
class Block:
    """A block of a page, in the order of reading.

    Attributes:
        tag: of QwenVL HTML.
        lines: texts of a heading or paragraph; of a table, one per row, the cells separated by tabs.
        box: left, top, right, bottom in pixels.
        fields: the lines are "label: value".
    """

    tag: Tag
    lines: tuple[str, ...]
    box: Box
    fields: bool = False


@dataclass(frozen=True)
class Page:
    """A drawn page and its blocks in the order of reading."""

    image: Image.Image
    blocks: tuple[Block, ...]


def draw_page(
    layout: PageLayout, words: tuple[str, ...], size: tuple[int, int], items: tuple[int, int], rng: np.random.Generator
) -> Page:
    """A page of ``layout`` with a heading, fields, one or two paragraphs and a table, all made of ``words``."""
    setter = _Setter(words, size, items, rng)
    left, right = (edge + side * between(rng, _MARGIN) for edge, side in ((0, 1), (size[0], -1)))
    middle = size[0] // 2
    place = _LAYOUTS[layout]
    return Page(setter.image, tuple(place(setter, left, middle, right)))


class _Setter:
    """Sets blocks below each other on a white page."""

    def __init__(
        self, words: tuple[str, ...], size: tuple[int, int], items: tuple[int, int], rng: np.random.Generator
    ) -> None:
        self._words, self._items, self._rng = words, items, rng
        self._face, self._bold = _FACES[int(rng.integers(len(_FACES)))]
        self.image = Image.new("RGB", size, tuple(rng.integers(240, 256, size=3).tolist()))
        self._draw = ImageDraw.Draw(self.image)
        # No label, first word of a line, or item occurs twice: every question has one answer.
        self._fields = list(rng.permutation(_FIELDS))
        self._firsts = [words[index] for index in rng.permutation(len(words))]
        self._line, self._gap = between(rng, _LINE), between(rng, _GAP)
        self.y = between(rng, _MARGIN)

    def heading(self, left: int, right: int) -> Block:
        text = f"{self._firsts.pop()} {self._word()}".title()
        return self._block("h2", [text], left, right, _HEADING)

    def fields(self, left: int, right: int) -> Block:
        lines = [f"{self._fields.pop()}: {self._value()}" for _ in range(between(self._rng, self._items))]
        return self._block("p", lines, left, right, _TEXT, fields=True)

    def paragraph(self, left: int, right: int) -> Block:
        lines = []
        for _ in range(between(self._rng, self._items)):
            line = self._firsts.pop()
            while self._width(f"{line} {(word := self._word())}", _TEXT) <= right - left and len(line) < 40:
                line = f"{line} {word}"
            lines.append(line)
        return self._block("p", lines, left, right, _TEXT)

    def table(self, left: int, right: int) -> Block:
        """Columns of equal width: what, how many, for how much."""
        head = _COLUMNS[int(self._rng.integers(len(_COLUMNS)))]
        rows = [head, *self._goods()]
        top, width = self.y, (right - left) // 3
        for number, row in enumerate(rows):
            y = top + number * self._line
            face = self._bold if number == 0 else self._face
            for column, cell in enumerate(row):
                self._draw.text((left + 4 + column * width, y + 2), cell, fill="black", font=font(face, _TEXT))
            self._draw.line((left, y, right, y), fill="#999999")
        bottom = top + len(rows) * self._line
        self._draw.rectangle((left, top, right - 1, bottom), outline="#666666")
        self.y = bottom + self._gap
        return Block("table", tuple("\t".join(row) for row in rows), (left, top, right, bottom + 1))

    def _goods(self) -> Iterator[tuple[str, str, str]]:
        for _ in range(between(self._rng, self._items)):
            price = f"{int(self._rng.integers(1, 100))}.{int(self._rng.integers(100)):02d}"
            yield self._firsts.pop(), str(int(self._rng.integers(2, 100))), price

    def _block(self, tag: Tag, lines: list[str], left: int, right: int, size: int, *, fields: bool = False) -> Block:
        face, step = (self._bold, size + 6) if tag == "h2" else (self._face, self._line)
        boxes = []
        for number, line in enumerate(lines):
            where = (left, self.y + number * step)
            self._draw.text(where, line, fill="black", font=font(face, size))
            boxes.append(self._draw.textbbox(where, line, font=font(face, size)))
        box = tuple(
            round(edge(side)) for edge, side in zip((min, min, max, max), zip(*boxes, strict=True), strict=True)
        )
        self.y += len(lines) * step + self._gap
        assert box[2] <= right + 4, "text leaves its column"  # slanted ink ends a little after its line
        return Block(tag, tuple(lines), box, fields)  # type: ignore[arg-type]

    def _value(self) -> str:
        if self._rng.random() < 0.5:
            return str(int(self._rng.integers(100, 10_000)))
        return self._word().title()

    def _word(self) -> str:
        return pick(self._rng, self._words)

    def _width(self, text: str, size: int) -> float:
        return font(self._face, size).getlength(text)


def _form(page: _Setter, left: int, middle: int, right: int) -> Iterator[Block]:
    yield page.heading(left, right)
    yield page.fields(left, right)
    yield page.table(left, right)
    yield page.paragraph(left, right)


def _invoice(page: _Setter, left: int, middle: int, right: int) -> Iterator[Block]:
    yield page.heading(middle, right)
    yield page.paragraph(left, right)
    yield page.table(left, right)
    yield page.fields(middle, right)


def _letter(page: _Setter, left: int, middle: int, right: int) -> Iterator[Block]:
    yield page.fields(left, right)
    yield page.heading(left, right)
    yield page.paragraph(left, right)
    yield page.table(left, middle + 60)
    yield page.paragraph(left, right)


def _receipt(page: _Setter, left: int, middle: int, right: int) -> Iterator[Block]:
    yield page.heading(middle - 60, right)
    yield page.table(left + 40, right - 40)
    yield page.fields(left + 40, right)
    yield page.paragraph(left + 40, right - 40)


def _report(page: _Setter, left: int, middle: int, right: int) -> Iterator[Block]:
    """Two columns: the left one is read to its end first."""
    yield page.heading(left, right)
    top = page.y
    yield page.paragraph(left, middle - 8)
    yield page.fields(left, middle - 8)
    below, page.y = page.y, top
    yield page.paragraph(middle + 8, right)
    page.y = max(below, page.y)
    yield page.table(left, right)


_LAYOUTS: dict[PageLayout, Callable[[_Setter, int, int, int], Iterator[Block]]] = {
    "form": _form,
    "invoice": _invoice,
    "letter": _letter,
    "receipt": _receipt,
    "report": _report,
}
