"""Windows on a screen, and where to click: the point and the box of a widget."""

from typing import get_args

import numpy as np
from PIL import Image, ImageDraw

from components.collect.embedded.config import EmbeddedConfig, ScreenLayout, ScreensConfig
from components.collect.embedded.fonts import BOLD, SANS, font
from components.collect.embedded.sample import OURS, Maker, Sample, pick, png_media, thousandths
from components.collect.embedded.screen_layouts import LAYOUTS, Box, Kind, Widget, place_widgets
from model.data.schema import scorer

SOURCE = "drawn screens"
_CLICKABLE: tuple[Kind, ...] = ("button", "entry", "check", "tab", "item", "slider")
_TITLE_BAR, _PADDING, _TEXT = 18, 6, 10
_SMALLEST = 0.88  # of the screen's width and height
# Desktop, window, title bar, widget, its border, text.
_THEMES = (
    ("#3a6ea5", "#f0f0f0", "#1f4e8c", "#ffffff", "#9a9a9a", "#111111"),
    ("#2b2b2b", "#3c3f41", "#232525", "#4c5052", "#8f8f8f", "#e6e6e6"),
    ("#5b7f5b", "#faf7f0", "#3d5a3d", "#ffffff", "#a8a08c", "#222222"),
    ("#40304f", "#f6f3fa", "#6a4c93", "#ffffff", "#b0a5c0", "#1c1426"),
)


def make_screens(config: ScreensConfig, corpus: EmbeddedConfig, *, heldout: bool) -> Maker:
    """Tasks ``click`` (a point) and ``widget`` (a box), both in thousandths; whole layouts are held out."""
    layouts = [name for name in get_args(ScreenLayout) if (name in config.heldout_layouts) == heldout]

    def make(task: str, rng: np.random.Generator) -> Sample:
        layout: ScreenLayout = pick(rng, layouts)  # type: ignore[assignment]
        image, placed = draw_screen(layout, config.size, rng)
        targets = [(widget, box) for widget, box in placed if widget.kind in _CLICKABLE]
        widget, box = targets[int(rng.integers(len(targets)))]
        inside = _written(thousandths(box, *config.size))
        source, media = f"{SOURCE}: {layout}", (png_media(image),)
        if task == "widget":
            judge = scorer("box_iou", threshold=0.5)
            return Sample(f"Where is {widget.label}?", inside, judge, source, OURS, media)
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        point = _written(thousandths(middle, *config.size))
        judge = scorer("point_in_box")
        return Sample(f"Click {widget.label}.", point, judge, source, OURS, media, references=(inside,))

    return make


def draw_screen(
    layout: ScreenLayout, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Image.Image, list[tuple[Widget, Box]]]:
    """A window of ``layout`` somewhere on a screen of ``size``, in one of several themes, and its widgets' boxes."""
    desktop, window, bar, _, border, _ = theme = _THEMES[int(rng.integers(len(_THEMES)))]
    image = Image.new("RGB", size, desktop)
    draw = ImageDraw.Draw(image)
    width, height = (round(side * rng.uniform(_SMALLEST, 1.0)) for side in size)
    left, top = int(rng.integers(size[0] - width + 1)), int(rng.integers(size[1] - height + 1))
    title, contents = LAYOUTS[layout]
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=window, outline=border)
    draw.rectangle((left, top, left + width - 1, top + _TITLE_BAR), fill=bar)
    draw.text((left + 6, top + _TITLE_BAR // 2), title, fill="white", font=font(BOLD, _TEXT), anchor="lm")
    inner = (left + _PADDING, top + _TITLE_BAR + _PADDING, left + width - _PADDING, top + height - _PADDING)
    placed = list(place_widgets(contents, inner))
    for widget, box in placed:
        _draw_widget(draw, widget, box, theme, float(rng.random()))
    return image, placed


def _draw_widget(draw: ImageDraw.ImageDraw, widget: Widget, box: Box, theme: tuple[str, ...], state: float) -> None:
    """One widget; ``state`` in [0, 1) ticks a box and moves a slider."""
    _, window, bar, face, border, ink = theme
    left, top, right, bottom = box
    edge, middle, text = (left, top, right - 1, bottom - 1), (top + bottom) / 2, font(SANS, _TEXT)
    match widget.kind:
        case "button":
            draw.rounded_rectangle(edge, 4, fill=face, outline=border)
            draw.text(((left + right) / 2, middle), widget.label, fill=ink, font=text, anchor="mm")
        case "entry":
            draw.rectangle(edge, fill=face, outline=border)
            draw.text((left + 5, min(middle, top + 12)), widget.label, fill=border, font=text, anchor="lm")
        case "check":
            draw.rectangle((left, middle - 5, left + 10, middle + 5), fill=bar if state < 0.5 else face, outline=border)
            draw.text((left + 15, middle), widget.label, fill=ink, font=text, anchor="lm")
        case "slider":
            draw.text((left, middle - 6), widget.label, fill=ink, font=text, anchor="lm")
            y, knob = middle + 6, left + 6 + state * (right - left - 12)
            draw.line((left, y, right, y), fill=border, width=2)
            draw.ellipse((knob - 5, y - 5, knob + 5, y + 5), fill=bar)
        case "tab":
            draw.rectangle(edge, fill=window, outline=border)
            draw.text(((left + right) / 2, middle), widget.label, fill=ink, font=text, anchor="mm")
        case "item" | "label":
            draw.text((left + 3, middle), widget.label, fill=ink, font=text, anchor="lm")


def _written(numbers: tuple[int, ...]) -> str:
    return " ".join(f"{number:03d}" for number in numbers)
