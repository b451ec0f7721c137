"""Routing as a picture: the image in its tiles, each tinted by the router's decision, beside its thumbnail.

A kept tile is drawn in teal with a fine grid, a compressed one in orange with a grid half as fine: a cell is a visual
token. The stronger the tint, the surer the router. Uses Pillow alone: decisions that were stored are drawn without a
model.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from model.flash.decisions import COMPRESSION

_KEPT, _COMPRESSED = (23, 121, 128), (209, 92, 10)
_INK, _PALE, _WHITE = (34, 38, 42), (214, 219, 223), (255, 255, 255)
_GAP, _BORDER, _MARGIN = 6, 4, 24
_MOST_WIDTH, _MOST_HEIGHT, _LEAST_TILE, _MOST_TILE = 840, 600, 88, 300
_TEXT, _SMALL = 18, 14
_MOST_LINES = 8
_SURE, _UNSURE = 0.4, 0.1
"""Opacity of the tint where the router is certain, and where it hesitates."""
_COLOUR = 0.4
"""Share of its own colours that a tile keeps: an orange picture must not look compressed."""


@dataclass(frozen=True)
class SeenImage:
    """One image as a network saw it.

    Attributes:
        image: RGB.
        grid: (columns, rows) of its tiles; where there are several, a thumbnail follows them.
        compressed: for every tile, the thumbnail last.
        probabilities: the router's P(compress) of each; None without a router.
        rows_per_tile: visual tokens of a tile that is not compressed.
    """

    image: Image.Image
    grid: tuple[int, int]
    compressed: Sequence[bool]
    probabilities: Sequence[float] | None
    rows_per_tile: int

    @property
    def full_tokens(self) -> int:
        """Visual tokens if no tile were compressed."""
        return len(self.compressed) * self.rows_per_tile

    @property
    def tokens(self) -> int:
        """Visual tokens as it is."""
        return self.full_tokens - sum(self.compressed) * (self.rows_per_tile - self.rows_per_tile // COMPRESSION)


def draw_tiles(seen: SeenImage) -> Image.Image:
    """The image in its tinted tiles, and its thumbnail to the right; the same arguments give the same pixels."""
    columns, rows = seen.grid
    side = max(_LEAST_TILE, min(_MOST_TILE, _MOST_WIDTH // columns, _MOST_HEIGHT // rows))
    whole = seen.image.resize((side * columns, side * rows), Image.Resampling.LANCZOS)
    thumbnail = len(seen.compressed) > columns * rows
    width = columns * (side + _GAP) - _GAP
    room = max(_LEAST_TILE, min(side, 180)) if thumbnail else 0
    canvas = Image.new("RGB", (width + (4 * _GAP + room if thumbnail else 0), rows * (side + _GAP) - _GAP), _WHITE)
    for number in range(columns * rows):
        row, column = divmod(number, columns)
        cut = whole.crop((column * side, row * side, (column + 1) * side, (row + 1) * side))
        canvas.paste(_tile(seen, number, cut), (column * (side + _GAP), row * (side + _GAP)))
    if thumbnail:
        small = seen.image.resize((room, room), Image.Resampling.LANCZOS)
        canvas.paste(_tile(seen, columns * rows, small), (width + 4 * _GAP, 0))
        if canvas.height >= room + 2 * _SMALL:
            place = (width + 4 * _GAP, room + _GAP)
            ImageDraw.Draw(canvas).text(place, "the whole, as a tile", _INK, _font(_SMALL))
    return canvas


def _tile(seen: SeenImage, number: int, picture: Image.Image) -> Image.Image:
    """One tile with its tint, its tokens as cells, its border and its label."""
    side, compressed = picture.width, bool(seen.compressed[number])
    colour = _COMPRESSED if compressed else _KEPT
    probability = None if seen.probabilities is None else float(seen.probabilities[number])
    sure = 0.0 if probability is None else abs(2 * probability - 1)
    pale = ImageEnhance.Color(picture).enhance(_COLOUR)
    tinted = Image.blend(pale, Image.new("RGB", picture.size, colour), _UNSURE + (_SURE - _UNSURE) * sure)
    tokens = seen.rows_per_tile // COMPRESSION if compressed else seen.rows_per_tile
    cells, lines = round(tokens**0.5), Image.new("L", picture.size, 0)
    pen = ImageDraw.Draw(lines)
    for cell in range(1, cells):
        at = round(cell * side / cells)
        pen.line([(at, 0), (at, side)], 110)
        pen.line([(0, at), (side, at)], 110)
    tinted.paste(Image.new("RGB", picture.size, colour), mask=lines)
    pen = ImageDraw.Draw(tinted)
    pen.rectangle([0, 0, side - 1, side - 1], outline=colour, width=_BORDER)
    label = f"{tokens}" if probability is None else f"{tokens}  p {probability:.2f}"
    font = _font(_SMALL if side >= 120 else 12)
    left, top, right, bottom = pen.textbbox((0, 0), label, font)
    pen.rectangle([0, side - (bottom - top) - 13, right - left + 13, side - 1], fill=colour)
    pen.text((6, side - (bottom - top) - 7 - top), label, _WHITE, font)
    return tinted


def draw_answer(shown: Sequence[SeenImage], question: str, answer: str) -> Image.Image:
    """A page: the images in their tiles, a legend, the question, the answer, and the visual tokens that were kept."""
    pictures = [draw_tiles(seen) for seen in shown]
    width = max([640, *(picture.width for picture in pictures)])
    text = [("question", _INK, line) for line in _wrapped(question, width - 110)]
    text += [("answer", _INK, line) for line in _wrapped(answer or "(nothing)", width - 110)]
    line_height = _TEXT + 8
    height = sum(picture.height + _MARGIN for picture in pictures) + len(text) * line_height + 130
    page = Image.new("RGB", (width + 2 * _MARGIN, height + 2 * _MARGIN), _WHITE)
    pen, top = ImageDraw.Draw(page), _MARGIN
    for picture in pictures:
        page.paste(picture, (_MARGIN, top))
        top += picture.height + _MARGIN
    if shown:
        _legend(pen, top, shown)
        top += 44
    previous = ""
    for name, colour, line in text:
        if name != previous:
            pen.text((_MARGIN, top), name, _KEPT, _font(_TEXT))
            previous = name
        pen.text((_MARGIN + 110, top), line, colour, _font(_TEXT))
        top += line_height
    if shown:
        _tokens_bar(pen, top + 12, width, shown)
        top += 70
    return page.crop((0, 0, page.width, top + _MARGIN))


def _legend(pen: ImageDraw.ImageDraw, top: int, shown: Sequence[SeenImage]) -> None:
    rows, font, left = shown[0].rows_per_tile, _font(_SMALL), _MARGIN
    routed = any(seen.probabilities is not None for seen in shown)
    entries = [(_KEPT, f"kept: {rows} tokens"), (_COMPRESSED, f"compressed: {rows // COMPRESSION} tokens")]
    for colour, words in entries if routed else entries[:1]:
        pen.rectangle([left, top, left + 18, top + 18], fill=colour)
        pen.text((left + 26, top + 1), words, _INK, font)
        left += 26 + int(pen.textlength(words, font)) + 30
    note = "p: the router's probability that a quarter is enough" if routed else "this network has no router"
    pen.text((left, top + 1), note, _INK, font)


def _tokens_bar(pen: ImageDraw.ImageDraw, top: int, width: int, shown: Sequence[SeenImage]) -> None:
    kept, full = sum(seen.tokens for seen in shown), sum(seen.full_tokens for seen in shown)
    pen.rectangle([_MARGIN, top, _MARGIN + width - 1, top + 16], fill=_PALE)
    pen.rectangle([_MARGIN, top, _MARGIN + round((width - 1) * kept / full), top + 16], fill=_KEPT)
    pen.text((_MARGIN, top + 26), share(shown), _INK, _font(_TEXT))


def share(shown: Sequence[SeenImage]) -> str:
    """The visual tokens of these images (one at least), and how many there were if none were compressed, in words."""
    kept, full = sum(seen.tokens for seen in shown), sum(seen.full_tokens for seen in shown)
    return f"{kept:,} of {full:,} visual tokens ({kept / full:.0%})"


def snippet(shown: Sequence[SeenImage], question: str, answer: str, truth: str = "") -> str:
    """A ``figure`` element for a page: the pictures of a question's images (one at least) under each other, question,
    answer, and the tokens of all; it needs no file beside it."""
    told = f"{escape(answer)} (truth: {escape(truth)})" if truth else escape(answer)
    return (
        f'<figure class="routing">{"".join(map(_embedded, shown))}<figcaption>{escape(question)}<br>'
        f"<strong>{told}</strong><br>{share(shown)}</figcaption></figure>"
    )


def _embedded(seen: SeenImage) -> str:
    stream = io.BytesIO()
    picture = draw_tiles(seen)
    picture.save(stream, "JPEG", quality=80)
    uri = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return (
        f'<img src="{uri}" width="{picture.width}" height="{picture.height}" '
        'alt="tiles by resolution" style="display:block;max-width:100%;height:auto;margin-bottom:6px">'
    )


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` pixels, words whole where they fit; a text that is too long is cut, visibly."""
    font, lines = _font(_TEXT), []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split():
            while font.getlength(word) > width:
                word, rest = word[: width // _TEXT], word[width // _TEXT :]
                lines += [*([line] if line else []), word]
                line, word = "", rest
            if line and font.getlength(f"{line} {word}") > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
        lines.append(line)
    return lines if len(lines) <= _MOST_LINES else [*lines[: _MOST_LINES - 1], "..."]
