"""Configuration of the embedded corpus. Imports no torch."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from model.config import Section

GLYPH_SIDE = 8
"""Side of scikit-learn's glyphs, before magnification."""

Table = Literal[
    "airports",
    "barley",
    "cars",
    "crimea",
    "driving",
    "iowa-electricity",
    "iris",
    "ohlc",
    "seattle-temps",
    "seattle-weather",
    "sf-temps",
    "stocks",
    "us-employment",
    "wheat",
]
Photo = Literal["astronaut", "brick", "camera", "chelsea", "clock", "coffee", "hubble", "rocket"]
PageLayout = Literal["form", "invoice", "letter", "receipt", "report"]
ScreenLayout = Literal["calculator", "checkout", "editor", "files", "login", "mail", "player", "settings"]

ArithmeticTask = Literal["sum", "difference", "compare"]
TextTask = Literal["text_sum", "text_difference", "text_product"]
WordTask = Literal["word", "last_letter"]
ChartTask = Literal["chart_value", "chart_maximum", "chart_difference", "chart_trend"]
PageTask = Literal["page_field", "page_line", "page_cell", "page_html"]
GroundingTask = Literal["ground"]
ComparisonTask = Literal["compare_count", "compare_largest", "same_digits"]
PhotoTask = Literal["photo_change", "photo_rotation"]
ScreenTask = Literal["click", "widget"]
ClipTask = Literal["clip_direction", "clip_order", "clip_count"]
FinePrintTask = Literal["transcribe_fine", "read_fine", "read_sparse", "read_beside", "tallest_label"]

Share = Annotated[float, Field(ge=0, le=1)]


class CanvasConfig(Section):
    """How handwritten digits lie on a canvas."""

    canvas: int = Field(56, ge=16, le=4096)
    """Side of the square canvas in pixels."""
    wide_share: float = Field(0.0, ge=0, le=1)
    """Share of canvases that are two tiles wide."""
    digits: tuple[int, int] = (1, 4)
    """Fewest and most digits on a canvas."""
    cells: int = Field(2, ge=1, le=16)
    """Rows and columns of the coarse grid on a square canvas; every digit lies in a cell of its own."""
    scale: tuple[float, float] = (2.0, 3.25)
    """Smallest and largest magnification of the 8 x 8 glyphs."""

    @model_validator(mode="after")
    def _fits(self) -> "CanvasConfig":
        fewest, most = self.digits
        smallest, largest = self.scale
        if not 1 <= fewest <= most:
            raise ValueError("digits must be (fewest, most) with 1 <= fewest <= most")
        if not 1 <= smallest <= largest:
            raise ValueError("scale must be (smallest, largest) with 1 <= smallest <= largest")
        if most > self.cells**2:
            raise ValueError(f"{most} digits do not fit in {self.cells} x {self.cells} cells")
        if round(GLYPH_SIDE * largest) > self.canvas // self.cells:
            raise ValueError(f"a digit of scale {largest} does not fit in a cell of {self.canvas // self.cells} pixels")
        return self


class FamilyConfig(Section):
    """What every family has: its size."""

    rows: int = Field(ge=1)
    """Training rows of each of the family's tasks."""


class StyledConfig(FamilyConfig):
    """A family whose demonstrations answer in two styles: directly ("11") and written out ("3 + 7 + 1 = 11").

    The question is the same for both, and both are right: which of them leads to more right answers is for
    reinforcement learning to find.
    """

    direct_share: Share = 0.5
    """Share of the training rows that answer directly; held-out rows always do."""
    noisy_share: Share = 0.0
    """Share of the training rows whose demonstration is wrong: ``source`` says so, and ``answers`` is right."""
    thought_share: Share = 0.0
    """Share of the written-out answers that think first: ``<think>3 + 7 + 1 = 11</think>\\boxed{11}``."""
    boxed_share: Share = 0.0
    """Share of the direct answers of training rows that stand in a box: ``\\boxed{11}``."""


class ArithmeticConfig(StyledConfig):
    """Sums, differences and comparisons of handwritten digits."""

    tasks: tuple[ArithmeticTask, ...] = get_args(ArithmeticTask)
    """Tasks to draw."""
    canvas: CanvasConfig = CanvasConfig(digits=(2, 4))
    """At least two digits each."""

    @model_validator(mode="after")
    def _two_operands(self) -> "ArithmeticConfig":
        if self.canvas.digits[0] < 2:
            raise ValueError("canvas.digits must begin at 2: there is nothing to compare one digit with")
        return self


class TextArithmeticConfig(StyledConfig):
    """Arithmetic in text, without an image. Held out: pairs of operands, in either order."""

    tasks: tuple[TextTask, ...] = get_args(TextTask)
    """Tasks to draw."""
    digits: tuple[int, int] = (2, 3)
    """Fewest and most decimal digits of an operand; the second operand of a product has one."""

    @model_validator(mode="after")
    def _in_range(self) -> "TextArithmeticConfig":
        if not 1 <= self.digits[0] <= self.digits[1] <= 9:
            raise ValueError("digits must be (fewest, most) with 1 <= fewest <= most <= 9")
        return self


class ComparisonConfig(FamilyConfig):
    """Two canvases of handwritten digits in one row."""

    tasks: tuple[ComparisonTask, ...] = get_args(ComparisonTask)
    """Tasks to draw."""
    canvas: CanvasConfig = CanvasConfig()
    """Of both."""


class WordsConfig(FamilyConfig):
    """Short printed words in several fonts. Held out: words, all of whose letters occur in training."""

    tasks: tuple[WordTask, ...] = get_args(WordTask)
    """Tasks to draw."""
    length: tuple[int, int] = (3, 6)
    """Fewest and most letters."""
    size: tuple[int, int] = (56, 56)
    """Width and height of the image in pixels; the type is as large as fits, or smaller."""

    @model_validator(mode="after")
    def _legible(self) -> "WordsConfig":
        if not 3 <= self.length[0] <= self.length[1]:
            raise ValueError("length must be (fewest, most) with 3 <= fewest <= most")
        if self.size[0] < 8 * self.length[1] or self.size[1] < 16 or max(self.size) > 4096:
            raise ValueError(f"size must be at least {8 * self.length[1]} x 16 and at most 4096 x 4096 pixels")
        return self


class ChartsConfig(FamilyConfig):
    """Bar and line charts of the tables that vega_datasets carries. Held out: whole tables."""

    tasks: tuple[ChartTask, ...] = get_args(ChartTask)
    """Tasks to draw."""
    heldout_tables: tuple[Table, ...] = ("barley", "crimea", "wheat")
    """Tables that occur in held-out charts only."""
    marks: tuple[int, int] = (3, 6)
    """Fewest and most bars or points."""
    size: tuple[int, int] = (336, 224)
    """Width and height in pixels."""
    labelled_share: Share = 0.5
    """Share of the charts that print each value at its mark; the others are read off the axis."""

    @model_validator(mode="after")
    def _drawable(self) -> "ChartsConfig":
        if not 3 <= self.marks[0] <= self.marks[1] <= 12:
            raise ValueError("marks must be (fewest, most) with 3 <= fewest <= most <= 12")
        if not (max(280, 48 * self.marks[1]) <= self.size[0] <= 4096 and 200 <= self.size[1] <= 4096):
            raise ValueError("size must be at least 280 x 200, 48 pixels wide for each mark, and at most 4096 x 4096")
        _both_sides(self.heldout_tables, get_args(Table), "heldout_tables")
        return self


class PagesConfig(FamilyConfig):
    """Rendered text pages. Held out: layouts, and the words that stand on them."""

    tasks: tuple[PageTask, ...] = get_args(PageTask)
    """Tasks to draw."""
    heldout_layouts: tuple[PageLayout, ...] = ("receipt", "report")
    """Layouts that occur in held-out pages only; training and held-out ones need fields, lines and a table each."""
    size: tuple[int, int] = (336, 448)
    """Width and height in pixels, multiples of 28: then Qwen2.5-VL reads the page, and its boxes, without resizing."""
    items: tuple[int, int] = (2, 4)
    """Fewest and most fields, lines of a paragraph, and rows of a table."""

    @model_validator(mode="after")
    def _printable(self) -> "PagesConfig":
        if any(side % 28 for side in self.size) or not (336 <= self.size[0] <= 4032 and 448 <= self.size[1] <= 4032):
            raise ValueError("size must be multiples of 28 between 336 x 448 and 4032 x 4032 pixels")
        if not 1 <= self.items[0] <= self.items[1] <= 4:
            raise ValueError("items must be (fewest, most) with 1 <= fewest <= most <= 4")
        _both_sides(self.heldout_layouts, get_args(PageLayout), "heldout_layouts")
        return self


class GroundingConfig(FamilyConfig):
    """Several coloured shapes, one of which to find. Held out: combinations of colour and shape."""

    tasks: tuple[GroundingTask, ...] = get_args(GroundingTask)
    """Tasks to draw."""
    objects: tuple[int, int] = (2, 6)
    """Fewest and most shapes."""
    canvas: int = Field(112, ge=48, le=4096)
    """Side of the square image in pixels."""

    @model_validator(mode="after")
    def _placeable(self) -> "GroundingConfig":
        if not 2 <= self.objects[0] <= self.objects[1] <= 9:
            raise ValueError("objects must be (fewest, most) with 2 <= fewest <= most <= 9")
        return self


class PhotosConfig(FamilyConfig):
    """Photographs of scikit-image, and what was done to them. Held out: whole photographs."""

    tasks: tuple[PhotoTask, ...] = get_args(PhotoTask)
    """Tasks to draw."""
    heldout_photos: tuple[Photo, ...] = ("camera", "rocket")
    """Photographs that occur in held-out rows only."""
    side: int = Field(112, ge=32, le=512)
    """Side of the square images in pixels."""

    @model_validator(mode="after")
    def _seen_and_unseen(self) -> "PhotosConfig":
        _both_sides(self.heldout_photos, get_args(Photo), "heldout_photos")
        return self


class ScreensConfig(FamilyConfig):
    """Windows of programs, drawn from layouts of widgets. Held out: layouts."""

    tasks: tuple[ScreenTask, ...] = get_args(ScreenTask)
    """Tasks to draw."""
    heldout_layouts: tuple[ScreenLayout, ...] = ("checkout", "player")
    """Layouts that occur in held-out screens only."""
    size: tuple[int, int] = (336, 224)
    """Width and height of the screen in pixels."""

    @model_validator(mode="after")
    def _roomy(self) -> "ScreensConfig":
        if not (320 <= self.size[0] <= 4096 and 220 <= self.size[1] <= 4096):
            raise ValueError("size must be between 320 x 220 and 4096 x 4096 pixels")
        _both_sides(self.heldout_layouts, get_args(ScreenLayout), "heldout_layouts")
        return self


class ClipsConfig(FamilyConfig):
    """Short videos of handwritten digits. Held out: glyphs."""

    tasks: tuple[ClipTask, ...] = get_args(ClipTask)
    """Tasks to draw."""
    container: Literal["gif", "webp", "mp4"] = "gif"
    """Encoding of the bytes: animated GIF or lossless WebP, or H.264."""
    canvas: int = Field(56, ge=32, le=512)
    """Side of the square frames in pixels, even."""
    frames: int = Field(8, ge=6, le=64)
    """Frames of a clip."""
    fps: Literal[1, 2, 4, 5, 10] = 4
    """Frames per second; the time of a frame is a whole number of a GIF's hundredths."""
    events: tuple[int, int] = (1, 3)
    """Fewest and most digits in turn, or flashes; a flash and the pause after it take two frames at least."""

    @model_validator(mode="after")
    def _long_enough(self) -> "ClipsConfig":
        if self.canvas % 2:
            raise ValueError("canvas must be even: H.264 halves the colours' resolution")
        if not 1 <= self.events[0] <= self.events[1] or 2 * self.events[1] > self.frames:
            raise ValueError("events must be (fewest, most) with 1 <= fewest <= most, and two frames for each")
        return self


MOST_COLUMNS = 3
"""Of a chart of ``tallest_label``."""


class FinePrintConfig(FamilyConfig):
    """Handwritten digits so small that a compressed tile cannot tell them apart, alone, beside large ones or blank
    paper, and as the labels of columns. Held out: glyphs.

    Beside the large ones of other families they are what makes resolution matter: a row of features of a compressed
    tile covers four cells of the grid, one of a whole tile covers one (at 56 pixels, patches of 7 and 4 cells).
    """

    tasks: tuple[FinePrintTask, ...] = get_args(FinePrintTask)
    """Tasks to draw: in the words of pre-training; as a question; as a question beside a blank half, or beside a half
    with large digits, to be read half by half; which digit labels the tallest column of a chart."""
    canvas: CanvasConfig = CanvasConfig(digits=(3, 6), cells=4, scale=(1.25, 1.7))
    """Of the half with small print."""
    large: CanvasConfig = CanvasConfig(digits=(1, 2), cells=2, scale=(2.5, 3.4))
    """Of the half beside it in ``read_beside``."""
    lines: int = Field(2, ge=1)
    """Neighbouring rows of the grid that hold all of the digits."""

    @model_validator(mode="after")
    def _on_lines(self) -> "FinePrintConfig":
        if self.canvas.cells % self.lines:
            raise ValueError(f"lines must divide canvas.cells, which is {self.canvas.cells}")
        if self.canvas.digits[1] > self.lines * self.canvas.cells:
            raise ValueError(f"{self.canvas.digits[1]} digits do not fit on {self.lines} x {self.canvas.cells} cells")
        if self.canvas.wide_share or self.large.wide_share:
            raise ValueError("wide_share: the task says which canvases are wide; leave it out")
        if "read_beside" in self.tasks and self.large.canvas != self.canvas.canvas:
            raise ValueError(f"large.canvas: the halves of an image are equal; {self.canvas.canvas} pixels here too")
        if "tallest_label" in self.tasks and self.canvas.cells < MOST_COLUMNS:
            raise ValueError(f"canvas.cells: {MOST_COLUMNS} columns of tallest_label need as many cells")
        return self


class EmbeddedConfig(Section):
    """Families of the embedded corpus besides ``digits``; a family that is not named is not drawn."""

    seed: int = Field(0, ge=0)
    """Of everything drawn: the same seed gives the same corpus."""
    heldout: int = Field(100, ge=1)
    """Held-out rows of each task."""
    heldout_share: float = Field(0.2, gt=0, lt=0.5)
    """Share of the glyphs, words, operands and combinations that occur in held-out rows only."""
    arithmetic: ArithmeticConfig | None = None
    """Sums, differences and comparisons of handwritten digits."""
    text_arithmetic: TextArithmeticConfig | None = None
    """Sums, differences and products without an image."""
    comparison: ComparisonConfig | None = None
    """Questions about two canvases."""
    words: WordsConfig | None = None
    """Short printed words."""
    charts: ChartsConfig | None = None
    """Bar and line charts of real tables."""
    pages: PagesConfig | None = None
    """Rendered text pages."""
    grounding: GroundingConfig | None = None
    """Boxes of coloured shapes."""
    photos: PhotosConfig | None = None
    """What was done to a photograph."""
    screens: ScreensConfig | None = None
    """Where to click in a window."""
    clips: ClipsConfig | None = None
    """Short videos of handwritten digits."""
    fine_print: FinePrintConfig | None = None
    """Small handwritten digits, some beside a blank half."""

    @model_validator(mode="after")
    def _not_empty(self) -> "EmbeddedConfig":
        families = [value for value in dict(self).values() if isinstance(value, FamilyConfig)]
        if not families:
            raise ValueError("name at least one family, e.g. arithmetic")
        for family in families:
            tasks: tuple[str, ...] = family.tasks  # type: ignore[attr-defined]
            if not tasks or len(set(tasks)) != len(tasks):
                raise ValueError(f"tasks must be one or more different ones, not {list(tasks)}")
        return self


def _both_sides(heldout: tuple[str, ...], everything: tuple[str, ...], name: str) -> None:
    if not heldout or set(heldout) == set(everything):
        raise ValueError(f"{name} must name some of {', '.join(everything)}, and not all")
