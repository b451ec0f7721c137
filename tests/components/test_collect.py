"""``collect``: the embedded corpus, existing datasets, the tokenizer."""

import io
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from tokenizers import Tokenizer, models

from components.collect import canvas as canvas_module
from components.collect import digits as digits_module
from components.collect.canvas import Canvas, Painter
from components.collect.config import CollectConfig, DigitsConfig
from components.collect.digits import (
    FAMILIES,
    boxed_transcription,
    count,
    digit_rows,
    locate,
    maximum,
    read,
    transcribe,
)
from components.collect.glyphs import Glyphs, load_glyphs, split_glyphs
from components.collect.step import run
from components.collect.tokenizer import SPECIAL_TOKENS
from model.data.artifact import payload_sha256
from model.data.errors import InputError
from model.data.schema import check_row, image_media, scorer
from model.data.shards import open_dataset, write_dataset
from scoring.boxes import parse_box
from scoring.score import score_answer

SMALL = DigitsConfig(transcriptions=12, questions=6, heldout=5)
OUTPUTS = ("corpus", "heldout", "tokenizer")


def collect(directory, context, **config):
    result = run(CollectConfig(**config), **{name: directory / name for name in OUTPUTS}, context=context)
    return result, *(open_dataset(directory / name, verify=True) for name in OUTPUTS[:2])


# The embedded corpus


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path, context):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        collect(tmp_path / name, context, digits=SMALL.model_copy(update={"seed": seed}))
    hashes = {
        name: [payload_sha256(tmp_path / name / output) for output in OUTPUTS] for name in ("one", "two", "other")
    }
    assert hashes["one"] == hashes["two"]
    assert hashes["one"][0] != hashes["other"][0]
    assert hashes["one"][1] != hashes["other"][1]


def test_families_have_the_rows_that_were_asked_for(tmp_path, context):
    result, corpus, heldout = collect(tmp_path, context, digits=SMALL, shards=2)
    rows = list(corpus.rows())
    assert {family: sum(row["task"] == family for row in rows) for family in FAMILIES} == {
        "transcribe": 12,
        "read": 6,
        "count": 6,
        "maximum": 6,
        "locate": 6,
    }
    assert [row["task"] for row in heldout.rows()] == [family for family in FAMILIES for _ in range(5)]
    assert result.numbers["corpus_rows"] == len(corpus) == 36
    assert len(corpus.shards) == 2
    assert rows[12]["id"] == "digits-train-read-000000"


def test_every_row_is_valid_and_its_answer_full_marks_by_its_own_scorer():
    for rows in digit_rows(SMALL.model_copy(update={"boxed_share": 0.5})):
        for row in rows:
            assert check_row(row) is None
            judge, answer = row["scorer"], row["messages"][-1]["content"]
            assert score_answer(judge["name"], judge["parameters"], answer, row["answers"]).value == 1.0


def test_more_rows_do_not_change_the_first_ones():
    few = list(digit_rows(SMALL)[1])
    more = list(digit_rows(SMALL.model_copy(update={"heldout": 9}))[1])
    assert [row for row in more if int(row["id"][-6:]) < 5] == few


def test_held_out_rows_are_drawn_from_glyphs_that_training_never_sees(monkeypatch):
    pools = []

    class Recorder(Painter):
        def __init__(self, config, glyphs):
            super().__init__(config, glyphs)
            pools.append({image.tobytes() for image in glyphs.images})

    monkeypatch.setattr(digits_module, "Painter", Recorder)
    train, heldout = digit_rows(SMALL)
    assert next(train)["id"].startswith("digits-train")
    assert next(heldout)["id"].startswith("digits-heldout")
    assert len(pools) == 2
    assert pools[0] & pools[1] == set()
    assert len(pools[1]) == pytest.approx(0.2 * 1797, abs=5)


def test_a_copy_of_a_held_out_glyph_does_not_train():
    glyphs = load_glyphs()
    twice = Glyphs(np.concatenate([glyphs.images] * 2), np.concatenate([glyphs.labels] * 2))
    train, heldout = split_glyphs(twice, 0.2, seed=0)
    assert {image.tobytes() for image in train.images}.isdisjoint(image.tobytes() for image in heldout.images)
    assert len(train) + len(heldout) < len(twice)
    assert set(train.labels.tolist()) == set(heldout.labels.tolist()) == set(range(10))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    wide=st.booleans(),
    scale=st.tuples(st.floats(1.0, 1.5), st.floats(1.5, 3.5)),
)
def test_boxes_are_tight_in_cells_of_their_own_and_in_order_of_reading(seed, wide, scale):
    config = SMALL.model_copy(update={"wide_share": float(wide), "scale": scale})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas_module, "_NOISE", (0, 0))
        patch.setattr(canvas_module, "_PAPER", (40, 40))
        drawn = Painter(config, load_glyphs()).draw(np.random.default_rng(seed))
    image = np.asarray(Image.open(io.BytesIO(drawn.png))).astype(int)
    assert image.shape == (56, 112 if wide else 56) == (drawn.height, drawn.width)
    assert 1 <= len(drawn.digits) == len(drawn.boxes) <= 4
    ink = np.abs(image - 40) > 12
    for left, top, right, bottom in drawn.boxes:
        assert 0 <= left < right <= drawn.width
        assert 0 <= top < bottom <= drawn.height
        inside = ink[top:bottom, left:right]
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
        ink[top:bottom, left:right] = False
    assert not ink.any(), "ink outside the boxes"
    cells = [(top // 28, left // 28) for left, top, _, _ in drawn.boxes]
    assert cells == [((bottom - 1) // 28, (right - 1) // 28) for _, _, right, bottom in drawn.boxes]
    assert cells == sorted(set(cells))


def test_canvases_fit_the_whole_range_of_scales():
    painter = Painter(SMALL.model_copy(update={"digits": (4, 4), "scale": (1.5, 3.5)}), load_glyphs())
    rng = np.random.default_rng(0)
    assert all(len(painter.draw(rng).digits) == 4 for _ in range(50))


def test_questions_are_answered_from_the_canvas():
    drawn = Canvas(b"", 100, 50, (3, 7, 3), ((0, 0, 10, 20), (20, 10, 40, 30), (50, 20, 100, 50)))
    rng = np.random.default_rng(0)
    assert transcribe(drawn, rng)[1] == "3 7 3"
    assert read(drawn, rng)[1] == "3 7 3"
    assert count(drawn, rng)[1] == "3"
    assert maximum(drawn, rng)[1] == "7"
    question, answer, _ = locate(drawn, rng)
    assert "7" in question
    assert answer == "200 200 400 600"
    assert boxed_transcription(drawn, rng)[1] == "3 000 000 100 400; 7 200 200 400 600; 3 500 400 980 980"


def test_a_digit_that_occurs_twice_is_never_asked_for():
    twice = Canvas(b"", 100, 100, (4, 4), ((0, 0, 10, 20), (20, 10, 40, 30)))
    assert locate(twice, np.random.default_rng(0)) is None
    config = SMALL.model_copy(update={"digits": (4, 4), "questions": 40})
    rows = [row for row in digit_rows(config)[0] if row["task"] == "locate"]
    assert len(rows) == 40


def test_boxed_transcriptions_train_and_are_never_held_out():
    train, heldout = digit_rows(SMALL.model_copy(update={"boxed_share": 1.0}))
    for row in train:
        if row["task"] == "transcribe":
            for part in row["answers"][0].split("; "):
                digit, box = part.split(" ", 1)
                assert digit in "0123456789"
                assert parse_box(box) is not None
    assert all(";" not in row["answers"][0] for row in heldout)


@pytest.mark.parametrize(
    "wrong",
    [
        {"digits": (1, 9)},
        {"digits": (3, 2)},
        {"digits": (0, 2)},
        {"scale": (2.5, 1.5)},
        {"scale": (1.5, 8.0)},
        {"wide_share": 1.5},
        {"colour": "red"},
    ],
)
def test_a_corpus_that_cannot_be_drawn_is_refused(wrong):
    with pytest.raises(ValidationError):
        DigitsConfig(transcriptions=1, questions=1, **wrong)


# Existing datasets


def row(index, **changes):
    return {
        "id": f"row-{index}",
        "source": "mine",
        "license": "CC0-1.0",
        "media": [image_media(b"x", image_format="PNG", width=4, height=4)],
        "messages": [{"role": "user", "content": "<image>\nHow many?"}, {"role": "assistant", "content": "3"}],
        "task": "count",
        "answers": ["3"],
        "scorer": scorer("numeric"),
    } | changes


def own_data(directory, train, heldout):
    write_dataset(directory / "train", train)
    write_dataset(directory / "heldout", heldout)
    return directory


def test_rows_of_an_existing_dataset_are_kept_or_rejected_with_a_reason(tmp_path, context):
    unanswered = row(2, messages=[{"role": "user", "content": "<image>\nHow many?"}])
    unmatched = row(3, messages=[{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "3"}])
    source = own_data(tmp_path / "mine", [row(0), row(1), unanswered, unmatched, row(1)], [row(9), row(0)])
    result, corpus, heldout = collect(tmp_path / "out", context, dataset=source, shards=2)
    assert [one["id"] for one in corpus.rows()] == ["row-0", "row-1"]
    reasons = {reject["id"]: reject["reason"] for reject in corpus.rejects()}
    assert "no answer" in reasons["row-2"]
    assert "0 <image> placeholders for 1 media" in reasons["row-3"]
    assert "taken by an earlier row" in reasons["row-1"]
    assert len(corpus) + len(corpus.rejects()) == 5
    assert [reject["id"] for reject in heldout.rejects()] == ["row-0"]
    assert result.numbers["corpus_rejects"] == 3


def test_a_dataset_that_is_missing_or_half_written_is_named(tmp_path, context):
    with pytest.raises(InputError, match="no such directory"):
        collect(tmp_path / "out", context, dataset=tmp_path / "mine")
    source = own_data(tmp_path / "mine", [row(0)], [row(1)])
    (source / "heldout" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"heldout/manifest\.json: missing"):
        collect(tmp_path / "out", context, dataset=source)
    shutil.rmtree(source / "heldout")
    with pytest.raises(InputError, match="heldout: no such dataset directory"):
        collect(tmp_path / "out", context, dataset=source)
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_a_valid_row_is_refused(tmp_path, context):
    source = own_data(tmp_path / "mine", [row(0, answers=[])], [row(1)])
    with pytest.raises(InputError, match="no valid row among 1; the first reason: answers is missing or empty"):
        collect(tmp_path / "out", context, dataset=source)
    assert not (tmp_path / "out" / "corpus").exists()


def test_there_is_exactly_one_source(tmp_path):
    for wrong in ({}, {"digits": SMALL, "dataset": tmp_path}):
        with pytest.raises(ValidationError, match="exactly one of digits, dataset and source"):
            CollectConfig(**wrong)


# The tokenizer


@pytest.fixture(scope="module")
def tokenizer_directory(digits):
    return digits / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer(tokenizer_directory):
    return Tokenizer.from_file(str(tokenizer_directory / "tokenizer.json"))


def test_numbers_share_no_token_with_words_or_with_each_other(tokenizer):
    tokens = tokenizer.encode("Where is 7? 020 340 180 500").tokens
    assert len(tokens) > 4
    for token in tokens:
        text = token.replace("\u0120", " ")
        assert not any(character.isdigit() for character in text) or text.strip().isdigit()


def test_special_tokens_are_never_split_and_come_last(tokenizer):
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(tokenizer.get_vocab_size() - len(SPECIAL_TOKENS), tokenizer.get_vocab_size()))
    around = tokenizer.encode("1<img><IMG_CONTEXT></img>1").tokens
    assert around == ["1", "<img>", "<IMG_CONTEXT>", "</img>", "1"]


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_can_be_written(tokenizer, text):
    normal = unicodedata.normalize("NFC", text)
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == normal


def test_stock_transformers_opens_it(tokenizer_directory, tokenizer):
    from transformers import AutoTokenizer

    stock = AutoTokenizer.from_pretrained(tokenizer_directory)
    assert stock("Where is the 7?<|im_end|>")["input_ids"] == tokenizer.encode("Where is the 7?<|im_end|>").ids
    assert len(stock) == tokenizer.get_vocab_size()
    assert (stock.eos_token, stock.pad_token) == ("<|im_end|>", "<|endoftext|>")
    # What transformers' InternVLProcessor asks of its tokenizer.
    assert stock.start_image_token_id == tokenizer.token_to_id("<img>")
    assert stock.end_image_token_id == tokenizer.token_to_id("</img>")
    assert stock.context_image_token == "<IMG_CONTEXT>"
    assert stock.context_image_token_id == tokenizer.token_to_id("<IMG_CONTEXT>")
    assert stock.video_token == "<video>"


def test_a_given_tokenizer_keeps_its_ids_and_gets_what_it_lacks(tmp_path, context):
    given_tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<|im_end|>": 2}, unk_token="a"))
    given_tokenizer.add_special_tokens(["<|im_end|>"])
    (tmp_path / "given").mkdir()
    given_tokenizer.save(str(tmp_path / "given" / "tokenizer.json"))
    collect(tmp_path / "out", context, digits=SMALL, tokenizer=tmp_path / "given")
    made = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer" / "tokenizer.json"))
    assert [made.token_to_id(token) for token in ("a", "b", "<|im_end|>")] == [0, 1, 2]
    assert made.token_to_id("<IMG_CONTEXT>") > 2
    assert made.get_vocab_size() == 2 + len(SPECIAL_TOKENS)


@pytest.mark.parametrize("content", [None, "", "{}", "\x00 not JSON"])
def test_a_broken_tokenizer_is_named(tmp_path, context, content):
    (tmp_path / "given").mkdir()
    if content is not None:
        (tmp_path / "given" / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"given/tokenizer\.json: (missing|not a tokenizer)"):
        collect(tmp_path / "out", context, digits=SMALL, tokenizer=tmp_path / "given")


def test_the_data_steps_import_no_torch():
    script = (
        "import sys, components.collect.step, components.curate.step\n"
        "print(sorted({'torch', 'transformers', 'kfp', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_a_mix_gives_a_family_more_or_fewer_rows():
    config = SMALL.model_copy(update={"transcriptions": 4, "questions": 10, "mix": {"count": 0.5, "locate": 1.6}})
    counted = Counter(row["task"] for row in digit_rows(config)[0])
    assert counted == {"transcribe": 4, "read": 10, "count": 5, "maximum": 10, "locate": 16}
