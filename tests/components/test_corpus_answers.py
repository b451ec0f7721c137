"""Answers of the embedded corpus against a second look: at the pixels, at the tables by pandas, by arithmetic."""

import ast
import io
import operator
import re
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from vega_datasets import local_data

from components.collect.canvas import Painter
from components.collect.embedded import charts as charts_module
from components.collect.embedded import clips as clips_module
from components.collect.embedded.chart_drawing import axis_end
from components.collect.embedded.config import EmbeddedConfig, Table
from components.collect.embedded.fonts import SANS, font
from components.collect.embedded.grounding import COLOURS
from components.collect.embedded.rows import embedded_rows
from components.collect.embedded.screen_layouts import LAYOUTS
from components.collect.embedded.screens import draw_screen
from components.collect.embedded.tables import table_series
from model.data.video import FrameSampling, read_medium

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def drawn(family, rows=20, **settings):
    """Training and held-out rows of one family."""
    config = EmbeddedConfig.model_validate({"heldout": rows, family: {"rows": rows} | settings})
    return [row for split in embedded_rows(config) for row in split]


def said(row):
    return row["messages"][-1]["content"]


def question(row):
    return row["messages"][0]["content"].splitlines()[-1]


def pixels(row, number=0):
    return np.asarray(Image.open(io.BytesIO(row["media"][number]["bytes"])).convert("RGB")).astype(int)


def evaluate(text):
    """The value of a formula of whole numbers."""

    def value(node):
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        return node.value

    return value(ast.parse(text, mode="eval").body)


@pytest.fixture
def canvases(monkeypatch):
    """Every canvas that is drawn from here on."""
    kept = []
    draw = Painter.draw

    def recorded(self, *arguments, **named):
        kept.append(draw(self, *arguments, **named))
        return kept[-1]

    monkeypatch.setattr(Painter, "draw", recorded)
    return kept


# Arithmetic and comparison


def test_digit_arithmetic_is_right_and_its_working_shows_the_canvas(canvases):
    rows = drawn("arithmetic", direct_share=0.0)
    for row, canvas in zip(rows, canvases, strict=True):
        digits, answer, text = canvas.digits, row["answers"][0], said(row)
        assert row["media"][0]["bytes"] == canvas.png
        if row["task"] == "compare":
            first, last = digits[0], digits[-1]
            assert answer == ("larger" if first > last else "smaller" if first < last else "equal")
            assert text in (answer, f"{first} {'>' if first > last else '<' if first < last else '='} {last}: {answer}")
            continue
        expected = sum(digits) if row["task"] == "sum" else digits[0] - digits[-1]
        assert int(answer) == expected
        if "=" in text:
            working, final = text.split(" = ")
            assert evaluate(working) == int(final) == expected
            shown = [int(digit) for digit in re.findall(r"\d", working)]
            assert shown == (list(digits) if row["task"] == "sum" else [digits[0], digits[-1]])


def test_every_step_of_text_arithmetic_has_the_value_of_the_question():
    for row in drawn("text_arithmetic", rows=60, direct_share=0.0, digits=[1, 4]):
        expected = evaluate(question(row).rstrip("?"))
        assert int(row["answers"][0]) == expected
        steps = said(row).split(" = ")
        assert [evaluate(step) for step in steps] == [expected] * len(steps)
        assert row["media"] == []


def test_comparisons_say_what_the_two_canvases_show(canvases):
    rows = drawn("comparison", rows=40)
    for row, first, second in zip(rows, canvases[::2], canvases[1::2], strict=True):
        assert [medium["bytes"] for medium in row["media"]] == [first.png, second.png]
        if row["task"] == "same_digits":
            assert said(row) == ("yes" if first.digits == second.digits else "no")
            continue
        key = len if row["task"] == "compare_count" else max
        difference = key(first.digits) - key(second.digits)
        assert said(row) == ("first" if difference > 0 else "second" if difference < 0 else "same")
    same = [said(row) for row in rows if row["task"] == "same_digits"]
    assert 0.3 < same.count("yes") / len(same) < 0.7


# Words


def test_a_word_lies_whole_in_its_image_and_stands_out():
    for row in drawn("words", rows=40, length=[3, 7]):
        image = pixels(row)
        paper = image[0, 0]
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (border == paper).all(), "ink touches the border"
        assert np.abs(image - paper).max() > 80


# Charts


def by_pandas(table):
    """{title start: (label, value) pairs} of every series, computed another way."""
    frame = getattr(local_data, table.replace("-", "_"))()
    month = {"crimea": "date", "us-employment": "month", "seattle-weather": "date", "stocks": "date"}.get(table)
    if month:
        frame["label"] = frame[month].astype("datetime64[ns]").dt.strftime("%b %y")
    elif table in ("seattle-temps", "sf-temps"):
        frame["label"] = frame["date"].dt.strftime("%b")
    elif table == "ohlc":
        frame["label"] = [f"{date:%b} {date.day}" for date in frame["date"]]
    elif table in ("cars", "iowa-electricity"):
        frame["label"] = frame["Year" if table == "cars" else "year"].dt.strftime("%Y")
    else:
        column = {"airports": "state", "barley": "variety", "iris": "species", "driving": "year", "wheat": "year"}
        frame = frame.dropna(subset=column[table])
        years = frame[column[table]]
        frame["label"] = years.dt.strftime("%Y") if years.dtype.kind == "M" else years.astype(str)
    group = {"barley": "site", "cars": "Origin", "iowa-electricity": "source", "stocks": "symbol"}.get(table)
    parts = {"": frame} if group is None else dict(tuple(frame.groupby(group)))
    return {
        (str(name), column): part.groupby("label", sort=False)[column].mean().dropna().to_dict()
        for name, part in parts.items()
        for column in part.select_dtypes("number").columns
    }


@pytest.mark.parametrize("table", get_args(Table))
def test_a_series_holds_the_means_that_pandas_finds_in_the_table(table):
    expected = by_pandas(table)
    for series in table_series(table):
        ours = dict(zip(series.labels, series.values, strict=True))
        group = series.title.rpartition(", ")[2]
        candidates = [means for (name, _), means in expected.items() if name in ("", group)]
        found = [
            means
            for means in candidates
            if set(means) == set(ours) and all(abs(ours[k] - means[k]) <= 0.005 * abs(means[k]) + 1e-9 for k in ours)
        ]
        assert found, series.title


@pytest.fixture
def charts(monkeypatch):
    """Title, labels, values, kind and whether they are printed, of every chart that is drawn from here on."""
    kept = []
    draw = charts_module.draw_chart

    def recorded(*arguments):
        kept.append(arguments[:5])
        return draw(*arguments)

    monkeypatch.setattr(charts_module, "draw_chart", recorded)
    return kept


def test_answers_about_charts_follow_from_what_is_drawn(charts):
    rows = drawn("charts", rows=30)
    for row, (_, labels, values, kind, _) in zip(rows, charts, strict=True):
        table, answer = dict(zip(labels, values, strict=True)), said(row)
        series = [one for one in table_series(row["source"].removeprefix("vega_datasets "))]
        assert any(set(table.items()) <= set(zip(one.labels, one.values, strict=True)) for one in series)
        if row["task"] == "chart_value":
            label = re.fullmatch(r"What is the value of (.*)\?", question(row))[1]
            assert float(answer) == pytest.approx(table[label], rel=0.005)
        elif row["task"] == "chart_maximum":
            assert answer == max(table, key=table.__getitem__)
        elif row["task"] == "chart_difference":
            larger, smaller = re.fullmatch(r"By how much is (.*) above (.*)\?", question(row)).groups()
            assert float(answer) == pytest.approx(table[larger] - table[smaller], rel=0.006)
            assert float(answer) > 0
        else:
            first, last = re.fullmatch(r"From (.*) to (.*): rises or falls\?", question(row)).groups()
            assert labels.index(first) < labels.index(last)
            assert answer == ("rises" if table[last] > table[first] else "falls")
            assert kind != "bars"


def test_the_height_of_a_column_is_its_value(charts):
    rows = drawn("charts", rows=30, labelled_share=0.0, tasks=["chart_maximum"])
    measured = 0
    for row, (_, labels, values, kind, _) in zip(rows, charts, strict=True):
        if kind != "columns":
            continue
        image = pixels(row)
        bars = (np.ptp(image, axis=2) > 40) & (np.arange(len(image)) > 30)[:, None]
        # Columns of pixels, cut into runs: one run per bar, in the order of the labels.
        heights = bars.sum(0)
        inside = np.flatnonzero(heights > 0)
        runs = np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1)
        shares = [np.median(heights[run]) / (224 - 22 - 32) for run in runs]
        drawn_values = [value for value in values if value > 0.02 * axis_end(values)]
        if len(runs) == len(drawn_values) == len(labels):
            measured += 1
            assert shares == pytest.approx([value / axis_end(values) for value in values], abs=0.015)
    assert measured > 5


@pytest.mark.parametrize(("top", "end"), [(0.9, 1.0), (1.0, 1.0), (1.1, 2.0), (39.8, 40.0), (41, 50), (9999, 10000)])
def test_an_axis_ends_at_a_round_number_above_all_values(top, end):
    assert axis_end([0.0, top]) == pytest.approx(end)


# Pages


def test_a_page_s_html_gives_tight_boxes_in_order_of_reading_and_answers_the_questions():
    for row in drawn("pages", rows=25, tasks=["page_html"]):
        fenced = re.fullmatch(r"```html\n(.*)\n```", said(row), re.DOTALL)[1]
        body = ElementTree.fromstring(fenced).find("body")
        image = pixels(row)
        ink = np.abs(image - image[0, 0]).max(2) > 60
        for element in body:
            left, top, right, bottom = map(int, element.get("data-bbox").split())
            inside = ink[top:bottom, left:right]
            assert inside[:3].any() and inside[-3:].any() and inside[:, :4].any() and inside[:, -4:].any()
            ink[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = False
        assert not ink.any(), "ink outside the boxes"
        assert {element.tag for element in body} == {"h2", "p", "table"}


def test_questions_about_a_page_have_one_answer_on_it(monkeypatch):
    from components.collect.embedded import pages as pages_module

    kept = []
    draw = pages_module.draw_page
    monkeypatch.setattr(pages_module, "draw_page", lambda *given: kept.append(draw(*given)) or kept[-1])
    for row, page in zip(drawn("pages", rows=25, tasks=["page_field", "page_line", "page_cell"]), kept, strict=True):
        text, answer = question(row), said(row)
        lines = [line for block in page.blocks for line in block.lines]
        if row["task"] == "page_field":
            label = text.removeprefix("What is the field ").removesuffix("?")
            assert [line for line in lines if line.startswith(f"{label}: ")] == [f"{label}: {answer}"]
        elif row["task"] == "page_line":
            start = text.removeprefix("Read the line that begins with ").removesuffix(".")
            assert [line for line in lines if line.split()[0] == start and "\t" not in line] == [answer]
        else:
            column, item = re.fullmatch(r"What is the (.*) of (.*)\?", text).groups()
            (table,) = (block for block in page.blocks if block.tag == "table")
            head, *rows = (line.split("\t") for line in table.lines)
            assert [cells[head.index(column)] for cells in rows if cells[0] == item] == [answer]


# Grounding, photographs, screens


def test_a_box_holds_all_pixels_of_the_colour_that_is_asked_for():
    checked = 0
    for row in drawn("grounding", rows=60):
        colour, _ = question(row).removeprefix("Where is the ").removesuffix("?").split()
        shade = tuple(int(COLOURS[colour][place : place + 2], 16) for place in (1, 3, 5))
        image = pixels(row)
        rows_of_ink, columns = np.nonzero((image == shade).all(2))
        box = np.array([int(number) for number in said(row).split()]) / 1000 * 112
        edges = np.array([columns.min(), rows_of_ink.min(), columns.max() + 1, rows_of_ink.max() + 1])
        # Another shape of the same colour may lie elsewhere: then the box is part of what was found.
        assert (box[:2] >= edges[:2] - 0.5).all() and (box[2:] <= edges[2:] + 0.5).all()
        checked += np.allclose(box, edges, atol=0.5)
    assert checked > 40


def test_the_second_photograph_is_the_first_one_changed_as_named():
    def rotated(times):
        return lambda image: np.rot90(image, times)

    numpy_changes = {
        "rotated 90": rotated(-1),
        "rotated 180": rotated(2),
        "rotated 270": rotated(1),
        "mirrored": lambda image: image[:, ::-1],
        "flipped": lambda image: image[::-1],
        "inverted": lambda image: 255 - image,
        "brighter": lambda image: np.minimum(255, image + 60),
        "darker": lambda image: np.maximum(0, image - 60),
        "gray": lambda image: np.repeat((image @ [0.299, 0.587, 0.114]).round()[..., None], 3, axis=2),
    }
    for row in drawn("photos", rows=40, tasks=["photo_change"]):
        before, after = pixels(row, 0), pixels(row, 1)
        if said(row) == "blurred":
            assert np.abs(np.diff(after, axis=1)).mean() < 0.7 * np.abs(np.diff(before, axis=1)).mean()
            continue
        for name, change in numpy_changes.items():
            apart = np.abs(after - change(before)).mean()
            assert apart < 1 if name == said(row) else apart > 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_widgets_lie_apart_within_the_screen_with_labels_that_fit_and_differ(layout):
    for size in ((336, 224), (640, 480)):
        image, placed = draw_screen(layout, size, np.random.default_rng(3))
        taken = np.zeros(size[::-1], bool)
        for widget, (left, top, right, bottom) in placed:
            assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
            assert not taken[top:bottom, left:right].any()
            taken[top:bottom, left:right] = True
            room = right - left - (15 if widget.kind == "check" else 4)
            assert font(SANS, 10).getlength(widget.label) <= room, widget.label
            assert bottom - top >= 12
        labels = [widget.label for widget, _ in placed if widget.kind != "space"]
        assert len(set(labels)) == len(labels)
        assert image.size == size


def test_a_click_lies_in_the_middle_of_the_box_that_scores_it():
    for row in drawn("screens", rows=30, tasks=["click"]):
        x, y = map(int, said(row).split())
        left, top, right, bottom = map(int, row["answers"][0].split())
        assert (x, y) == (pytest.approx((left + right) / 2, abs=1.1), pytest.approx((top + bottom) / 2, abs=1.1))


# Clips


@pytest.fixture
def glyph_labels(monkeypatch):
    """Labels of the glyphs of every clip of the task clip_order that is drawn from here on."""
    kept = []
    choose = clips_module._different_neighbours

    def recorded(glyphs, count, rng):
        chosen = choose(glyphs, count, rng)
        kept.append([int(glyphs.labels[index]) for index in chosen])
        return chosen

    monkeypatch.setattr(clips_module, "_different_neighbours", recorded)
    return kept


@pytest.mark.parametrize("container", ["gif", "webp", "mp4"])
def test_what_a_clip_shows_can_be_told_from_its_decoded_frames(container, glyph_labels):
    orders = []
    for row in drawn("clips", rows=12, container=container, frames=10):
        (medium,) = row["media"]
        video = read_medium(medium, FrameSampling())
        frames = np.stack([np.asarray(frame.convert("L")).astype(int) for frame in video.frames])
        assert len(frames) == 10
        assert video.timestamps == pytest.approx(np.arange(10) / 4)
        assert medium["end"] == 10 / 4
        bright = frames > (frames.min() + frames.max()) / 2
        if row["task"] == "clip_direction":
            first, last = (np.argwhere(frame).mean(0) for frame in (bright[0], bright[-1]))
            down, right = last - first
            assert max(abs(down), abs(right)) > 5 * min(abs(down), abs(right))
            along = {"left": -right, "right": right, "up": -down, "down": down}
            assert said(row) == max(along, key=along.__getitem__)
        elif row["task"] == "clip_count":
            visible = bright.sum((1, 2)) > 15
            starts = visible & ~np.concatenate([[False], visible[:-1]])
            assert int(said(row)) == starts.sum()
        else:
            changes = (np.abs(np.diff(frames, axis=0)) > 60).sum((1, 2)) > 15
            assert len(said(row).split()) == changes.sum() + 1
            orders.append([int(digit) for digit in said(row).split()])
    assert orders == glyph_labels


def test_h264_of_the_same_frames_is_the_same_bytes_whatever_memory_held_before():
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(6):
        held = [np.full(rng.integers(1_000, 60_000), rng.integers(256), np.uint8) for _ in range(200)]
        del held
        encoded.append([row["media"][0]["bytes"] for row in drawn("clips", rows=4, container="mp4")])
    assert all(again == encoded[0] for again in encoded)
    assert all(clip[4:8] == b"ftyp" for clip in encoded[0])
