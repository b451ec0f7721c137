"""``ocr_agreement`` reads rendered text and compares it with the answer."""

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from components.curate.engine import apply_recipe
from components.curate.model_sections import OcrAgreement
from components.curate.ocr import judge, similarity
from components.curate.page_reading import find_lines, read_lines
from components.curate.recipe import Decode, Schema
from model.data.schema import image_media, scorer
from model.data.shards import open_dataset, write_dataset
from scoring.text import anls

LINES = ("Invoice number 1337", "Total: 42.50 EUR", "Due on 3 November")
PART = OcrAgreement(tasks=("read",))
PAGE = OcrAgreement(tasks=("read",), answer_is="page")
WORDS = st.text("abcde", max_size=12)


def page(lines, size=(360, 160), height=22):
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((12, 12 + 2 * height * number), line, fill="black", font=ImageFont.load_default(height))
    return image


def medium(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return image_media(buffer.getvalue(), image_format="PNG", width=image.width, height=image.height)


@pytest.fixture(scope="module")
def invoice():
    return medium(page(LINES))


def squeezed(text):
    return text.replace(" ", "")


def test_every_line_is_read_in_reading_order():
    assert [squeezed(line) for line in read_lines(page(LINES))] == [squeezed(line) for line in LINES]


def test_columns_are_read_from_left_to_right():
    image = page(["Amount"], size=(400, 60))
    image.paste(page(["1200"], size=(120, 60)), (260, 0))
    assert read_lines(image) == ["Amount", "1200"]


@pytest.mark.parametrize("word", ["harbor", "quick", "zebra"])
def test_a_single_small_word_is_read(word):
    assert read_lines(page([word], size=(112, 56), height=16)) == [word]


def test_a_blank_page_says_nothing():
    assert find_lines(Image.new("RGB", (100, 60), "white")) == []


def test_a_field_of_the_page_agrees_as_a_part_and_not_as_the_page(invoice):
    reason, text, found = judge([invoice], ["42.50 eur"], PART)
    assert (reason, found) == (None, 1.0)
    assert text.count("\n") == 2
    assert judge([invoice], ["42.50 eur"], PAGE)[0].startswith("read 'Invoice")
    assert judge([invoice], [" ".join(LINES)], PAGE)[2] == 1.0


def test_another_answer_does_not_agree(invoice):
    reason, _, found = judge([invoice], ["Wednesday morning"], PART)
    assert found < 0.5
    assert reason.endswith(f"similarity {found:.2f} to the answer; the least is 0.8")
    assert judge([invoice], ["Wednesday morning", "1337"], PART)[0] is None


@given(read=WORDS, answer=WORDS.filter(bool))
def test_the_best_part_is_the_best_of_all_parts(read, answer):
    parts = [read[start:end] for start in range(len(read) + 1) for end in range(start, len(read) + 1)]
    # Of the parts no longer than the answer plus their insertions, the edit distance decides, not the part's length.
    distances = [round((1 - anls(part, [answer], threshold=0.0)) * max(len(part), len(answer))) for part in parts]
    assert similarity([read], [answer], PART) == pytest.approx(1 - min(distances) / len(answer))


def test_in_a_recipe_only_the_named_tasks_are_read(tmp_path, invoice):
    def row(row_id, task, answer):
        turns = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": answer}]
        base = {"id": row_id, "source": "test", "license": "CC0-1.0", "media": [invoice], "messages": turns}
        return base | {"task": task, "answers": [answer], "scorer": scorer("anls")}

    write_dataset(
        tmp_path / "rows", [row("a", "read", "1337"), row("b", "read", "a heron"), row("c", "bird", "a heron")]
    )
    rows = apply_recipe(open_dataset(tmp_path / "rows"), (Schema(), Decode(), PART), tmp_path / "state").rows
    assert [reason is None for reason in rows.reasons] == [True, False, True]
    assert rows.reasons[1].startswith("ocr: read ")
    assert rows.fact("ocr_similarity")[2] is None


def test_opencv_is_not_needed():
    read_lines(page(["word"], size=(112, 56)))
    assert "rapidocr_onnxruntime" not in sys.modules
