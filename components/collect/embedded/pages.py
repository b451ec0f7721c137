"""Questions about rendered pages: a field, a line, a cell of the table, and the whole page in the order of reading."""

from html import escape
from typing import get_args

import numpy as np

from components.collect.embedded.config import EmbeddedConfig, PageLayout, PagesConfig
from components.collect.embedded.lexicon import split_words
from components.collect.embedded.page_layout import Block, Page, draw_page
from components.collect.embedded.sample import OURS, Maker, Sample, pick, png_media
from model.data.schema import Scorer, scorer

SOURCE = "rendered pages"
# What Qwen2.5-VL's document parser was trained to be asked.
HTML_PROMPT = "QwenVL HTML"


def make_pages(config: PagesConfig, corpus: EmbeddedConfig, *, heldout: bool) -> Maker:
    """Tasks ``page_field``, ``page_line``, ``page_cell``, ``page_html``; layouts and words are held out."""
    layouts: list[PageLayout] = [name for name in get_args(PageLayout) if (name in config.heldout_layouts) == heldout]
    words = split_words(corpus.heldout_share, corpus.seed)[heldout]

    def make(task: str, rng: np.random.Generator) -> Sample:
        layout = pick(rng, layouts)  # type: ignore[arg-type]
        page = draw_page(layout, words, config.size, config.items, rng)  # type: ignore[arg-type]
        question, answer, judge = ask(task, page, rng)
        return Sample(question, answer, judge, f"{SOURCE}: {layout}", OURS, (png_media(page.image),))

    return make


def ask(task: str, page: Page, rng: np.random.Generator) -> tuple[str, str, Scorer]:
    """A question of ``task`` about a page, its answer, its scorer."""
    if task == "page_html":
        return HTML_PROMPT, page_html(page), scorer("page_html", threshold=0.5)
    if task == "page_field":
        fields = [line for block in page.blocks if block.fields for line in block.lines]
        label, value = pick(rng, fields).split(": ")
        return f"What is the field {label}?", value, scorer("exact")
    if task == "page_cell":
        head, *rows = next(_cells(block) for block in page.blocks if block.tag == "table")
        row, column = rows[int(rng.integers(len(rows)))], int(rng.integers(1, len(head)))
        return f"What is the {head[column]} of {row[0]}?", row[column], scorer("exact")
    lines = [line for block in page.blocks if block.tag == "p" and not block.fields for line in block.lines]
    line = pick(rng, lines)
    return f"Read the line that begins with {line.split()[0]}.", line, scorer("anls", threshold=0.5)


def page_html(page: Page) -> str:
    """The page as Qwen2.5-VL's document format: blocks in the order of reading, their boxes in pixels."""
    blocks = "\n".join(_html(block) for block in page.blocks)
    return f"```html\n<html><body>\n{blocks}\n</body></html>\n```"


def _html(block: Block) -> str:
    box = " ".join(map(str, block.box))
    if block.tag != "table":
        inside = " ".join(escape(line, quote=False) for line in block.lines)
    else:
        head, *rows = _cells(block)
        inside = _row("th", head) + "".join(_row("td", row) for row in rows)
    return f'<{block.tag} data-bbox="{box}">{inside}</{block.tag}>'


def _row(tag: str, cells: list[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell, quote=False)}</{tag}>' for cell in cells)}</tr>"


def _cells(block: Block) -> list[list[str]]:
    return [line.split("\t") for line in block.lines]
