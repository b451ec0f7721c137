"""Documents as QwenVL HTML: the elements that carry a box, their texts, and how much of a page was read in order.

Qwen2.5-VL answers "QwenVL HTML" with elements of any name whose attribute ``data-bbox`` is "x1 y1 x2 y2", most often
inside a fenced block of code.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser

from scoring.boxes import Box, box_iou, parse_box
from scoring.text import normalise

_MAX_TEXT = 1 << 17
_MAX_ELEMENTS = 512
_MARKUP = re.compile(r"<[A-Za-z/!?]")
# Elements without an end tag.
_VOID = frozenset(("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"))


@dataclass
class Element:
    """An element with a box: the text inside it that is not inside a smaller element with a box."""

    box: Box
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Normalised text; parts that markup separates are separate words."""
        return normalise(" ".join(self.parts))


def parse_page(text: str) -> list[Element] | None:
    """The elements with a box in the order of the text, or None when there is none.

    What is not HTML around them is skipped, unknown tags are accepted, end tags may be missing or wrong. Texts over
    131,072 characters and pages of over 512 elements state nothing.
    """
    if len(text) > _MAX_TEXT:
        return None
    end = text.rfind(">") + 1
    # Markup after the last ">" is never closed. The parser looks for its end once more at every "<": for minutes.
    if (unclosed := _MARKUP.search(text, end)) is not None:
        text = text[: unclosed.start()]
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.elements if 0 < len(reader.elements) <= _MAX_ELEMENTS else None


def page_match(page: Sequence[Element], reference: Sequence[Element], threshold: float = 0.5) -> float:
    """Share of elements read rightly and in order, in [0, 1].

    Two elements agree when their texts are equal and their boxes overlap with an IoU of at least ``threshold``. The
    longest common subsequence of agreeing elements is divided by the larger number of elements, so that what is
    missing, what is added, and what stands in the wrong place costs alike.
    """
    lengths = [0] * (len(reference) + 1)
    for element in page:
        before = lengths[:]
        for place, other in enumerate(reference):
            agree = element.text == other.text and box_iou(element.box, other.box) >= threshold
            lengths[place + 1] = before[place] + 1 if agree else max(before[place + 1], lengths[place])
    return lengths[-1] / max(len(page), len(reference))


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self._open: list[tuple[str, Element | None]] = []
        self._names: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        box = parse_box(dict(attrs).get("data-bbox") or "")
        element = Element(box) if box is not None else None
        if element is not None:
            self.elements.append(element)
        if tag not in _VOID:
            self._open.append((tag, element or (self._open[-1][1] if self._open else None)))
            self._names[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        # The innermost open element of this name, and whatever was left open inside it. An end tag of none costs
        # nothing: thousands of them after thousands of open elements would take half a minute to look for.
        while self._names[tag]:
            name, _ = self._open.pop()
            self._names[name] -= 1
            if name == tag:
                return

    def handle_data(self, data: str) -> None:
        if self._open and (element := self._open[-1][1]) is not None:
            element.parts.append(data)
