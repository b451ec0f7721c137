"""The operators of a recipe that need no model: what each lets pass and what it refuses."""

import itertools
import json
import math
import random
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from pydantic import ValidationError
from scipy import ndimage
from sklearn.datasets import load_sample_image

from components.curate.config import CurateConfig
from components.curate.engine import apply_recipe
from components.curate.image_operators import grey_entropy, laplacian_variance
from components.curate.near_texts import jaccard
from components.curate.pii import iban, luhn, redact
from components.curate.recipe import (
    DEFAULT,
    Aspect,
    Blur,
    Decode,
    Decontaminate,
    Difficulty,
    Entropy,
    ExactDuplicates,
    Licences,
    Mixture,
    NearDuplicateTexts,
    Operator,
    RedactPii,
    Schema,
    Size,
    Statistics,
    TextImageRatio,
)
from components.curate.selection import mixture_counts
from model.data.errors import InputError
from model.data.schema import image_media
from model.data.shards import open_dataset, write_dataset
from tests.components.test_curate_engine import curate
from tests.source_builders import video
from tests.tiny import encoded, question_row

CLIP = video(12)
GREY = Image.new("RGB", (60, 60), (90, 90, 90))
KINDS = ("email", "iban", "card", "ip", "phone")


def noise(seed=0, width=60, height=60):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def text(row_id, words, answer="yes", **changes):
    one = question_row(row_id, [], answer, words)
    return one | changes


def applied(directory, rows, *operators, evaluation=()):
    """(outcome, reasons by id) of schema, decode and these operators."""
    dataset = write_dataset(directory / "corpus", rows)
    outcome = apply_recipe(dataset, (Schema(), Decode(), *operators), directory / "state", evaluation=evaluation)
    named = zip(outcome.rows.fact("id"), outcome.rows.reasons, strict=True)
    return outcome, {row_id: reason for row_id, reason in named if reason is not None}


# The recipe


def test_a_recipe_is_read_from_a_profile():
    text = '{"recipe": [{"op": "schema"}, {"op": "decode"}, {"op": "size", "min_side": 100}]}'
    assert CurateConfig.model_validate_json(text, strict=True).recipe == (Schema(), Decode(), Size(min_side=100))
    assert CurateConfig().recipe == DEFAULT


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        ([{"op": "size"}], "begins with schema and decode"),
        ([{"op": "schema"}, {"op": "decode"}, {"op": "decode"}], "stand in a recipe once"),
        ([{"op": "schema"}, {"op": "sise"}], "'sise' found using 'op' does not match"),
        ([{"op": "schema"}, {"op": "decode"}, {"op": "size", "least": 3}], "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_recipe_is_refused(recipe, problem):
    with pytest.raises(ValidationError, match=problem):
        CurateConfig(recipe=recipe)


def test_every_operator_has_functions():
    from components.curate.dispatch import implementation

    for section in get_args(get_args(Operator)[0]):
        functions = implementation(section.model_construct())
        assert functions.row or functions.joint
        assert functions.module.is_file()


def test_the_recipe_of_the_guide_is_one():
    guide = (Path(__file__).parents[2] / "docs" / "data.md").read_text().partition("## Recipes")[2]
    example = yaml.safe_load(guide.partition("```yaml\n")[2].partition("```")[0])["curate"]
    assert len(CurateConfig.model_validate_json(json.dumps(example), strict=True).recipe) == len(example["recipe"])
    named = {
        section.model_fields["op"].default
        for section in get_args(get_args(Operator)[0])
        if "model" not in section.__module__
    }
    assert all(f"| `{op}` |" in guide for op in named)


# Images


def test_size_and_aspect_look_at_every_image_of_a_row(tmp_path):
    good, wide, small, large = noise(0), noise(1, 120, 30), noise(2, 20, 40), noise(3, 200, 190)
    rows = [question_row("good", [good], "1"), question_row("wide", [good, wide], "1")]
    rows += [question_row("small", [small], "1"), question_row("large", [large], "1")]
    _, found = applied(tmp_path, rows, Size(min_side=28, max_side=150), Aspect(largest=3))
    assert found == {
        "wide": "aspect: media[1]: 120 x 30 pixels; the longer side is more than 3 times the shorter",
        "small": "size: media[0]: 20 x 40 pixels; the least is 28 a side",
        "large": "size: media[0]: 200 x 190 pixels; the most is 150 a side",
    }


def test_blank_and_blurred_images_are_refused_and_drawings_stay(tmp_path):
    photo = Image.fromarray(load_sample_image("china.jpg"))
    drawing = Image.new("RGB", (60, 60), "white")
    drawing.paste((0, 0, 0), (10, 10, 30, 20))
    images = {"photo": photo, "blurred": photo.filter(ImageFilter.GaussianBlur(8)), "drawing": drawing, "blank": GREY}
    rows = [question_row(name, [image], "1") for name, image in images.items()]
    outcome, found = applied(tmp_path, rows, Entropy(min_bits=0.2), Blur())
    assert {name: reason.split(":")[0] for name, reason in found.items()} == {"blurred": "blur", "blank": "entropy"}
    assert outcome.rows.fact("sharpness")[3] is None  # what was refused before is not looked at
    assert outcome.rows.fact("entropy")[3] == [0.0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
def test_measures_are_those_of_scipy_and_pillow(seed, height, width):
    grey = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    assert grey_entropy(grey) == pytest.approx(Image.fromarray(grey).entropy(), abs=1e-9)
    inner = ndimage.laplace(grey.astype(float))[1:-1, 1:-1]
    assert laplacian_variance(grey) == pytest.approx(inner.var() if inner.size else 0)


# Texts


def test_too_little_or_too_much_text_for_an_image_is_refused_and_texts_alone_pass(tmp_path):
    rows = [
        question_row("fits", [noise(0)], "three", "How many?"),
        question_row("silent", [noise(1)], "3", ""),
        question_row("book", [noise(2)], "3", "word " * 100),
        text("alone", "word " * 100),
    ]
    _, found = applied(tmp_path, rows, TextImageRatio(low=5, high=100))
    assert set(found) == {"silent", "book"}
    assert found["silent"] == "text_image_ratio: 2.0 characters of text an image; the least is 5"


def test_licences_are_compared_without_case(tmp_path):
    rows = [
        text("a", "?", license="cc0-1.0"),
        text("b", "?", license="CC0-1.0 "),
        text("c", "?", license="CC-BY-NC-4.0"),
    ]
    _, found = applied(tmp_path, rows, Licences(allowed=("CC0-1.0",)))
    assert found == {"c": "licence: CC-BY-NC-4.0 is not on the list"}


def test_statistics_count_what_the_processor_would_tile(tmp_path):
    from model.flash.images import Tiling, tile_image

    image = noise(0, 112, 56)
    rows = [question_row("pair", [image, GREY], "one two", "How\nmany?"), text("alone", "a b")]
    outcome, _ = applied(tmp_path, rows, Statistics(tile=28, max_tiles=12))
    tiling = Tiling(28, max_tiles=12).shared_by(2)
    assert outcome.rows.fact("tiles") == [sum(len(tile_image(one, tiling)) for one in (image, GREY)), 0]
    assert outcome.rows.fact("spaced_words") == [4, 3]
    assert outcome.rows.fact("characters") == [len("How\nmany?\none two"), len("a b\nyes")]


def test_nearly_the_same_words_about_the_same_image_are_one_row(tmp_path):
    words = "the old harbour with seven red boats and a white lighthouse behind them in the morning fog"
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((320, 213))
    rows = [
        question_row("first", [photo], "yes", words),
        question_row("reworded", [photo], "yes", words.replace("morning", "evening")),
        question_row("other words", [photo], "yes", "an old bridge over the river with a temple behind it"),
        question_row("other image", [noise(2)], "yes", words),
        question_row("shouted", [photo], "yes", words.upper()),
        text("alone", words),
        text("alone again", words + "!"),
    ]
    jpeg = question_row("re-encoded", [photo], "yes", words)
    jpeg["media"][0] |= {"bytes": encoded(photo, "JPEG", quality=90), "sha256": None, "format": "JPEG"}
    _, found = applied(tmp_path, [*rows, jpeg], NearDuplicateTexts(ngram=1, jaccard=0.8))
    assert found == {
        "reworded": "near_duplicate_text: of first",
        "shouted": "near_duplicate_text: of first",
        "re-encoded": "near_duplicate_text: of first",
        "alone again": "near_duplicate_text: of alone",
    }


def test_banded_minhash_finds_the_pairs_that_comparing_all_texts_finds(tmp_path):
    lots = random.Random(0)
    vocabulary = [f"w{index}" for index in range(400)]
    texts = []
    for _ in range(20):
        words = lots.sample(vocabulary, 40)
        texts += [words, [*words[:-2], "x", "y"], [*words[:20], *lots.sample(vocabulary, 20)]]
    rows = [text(f"row-{index}", " ".join(words)) for index, words in enumerate(texts)]
    _, found = applied(tmp_path, rows, NearDuplicateTexts(ngram=1, jaccard=0.8))
    sets = [frozenset([*words, "yes"]) for words in texts]
    near = {f"row-{j}" for i, j in itertools.combinations(range(len(sets)), 2) if jaccard(sets[i], sets[j]) >= 0.8}
    assert set(found) == near
    assert len(near) == 20


# Personal data


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("Mail jo.doe+a@mail.example.co.uk now.", "Mail [EMAIL] now."),
        ("card 4111 1111 1111 1111, or 5500-0000-0000-0004", "card [CARD], or [CARD]"),
        ("pay to DE89 3704 0044 0532 0130 00.", "pay to [IBAN]."),
        ("from 192.168.0.1 and 2001:db8::8a2e:370:7334", "from [IP] and [IP]"),
        ("+49 30 901820 or (212) 555-0199 or call 030 901820", "[PHONE] or [PHONE] or call [PHONE]"),
    ],
)
def test_personal_data_is_replaced_by_what_it_was(said, left):
    assert redact(said, KINDS)[0] == left


@pytest.mark.parametrize(
    "said",
    [
        *("020 340 180 500", "3 7 1 9", "12 + 345 678 = 9", "4111 1111 1111 1112", "DE88 3704 0044 0532 0130 00"),
        *("at 12:30:45 on 2024-10-11", "1.2.3.4.5", "300.1.1.1", "a@b", "0000 0000 0000 0000", "x = y :: z"),
    ],
)
def test_boxes_sums_dates_and_numbers_that_fail_their_check_stay(said):
    assert redact(said, KINDS) == (said, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(10**11, 10**15 - 1))
def test_exactly_one_check_digit_passes_luhn(number):
    assert sum(luhn(f"{number}{digit}") for digit in range(10)) == 1


@settings(max_examples=60, deadline=None)
@given(st.from_regex(r"[A-Z]{2}", fullmatch=True), st.from_regex(r"[A-Z0-9]{11,30}", fullmatch=True))
def test_the_check_digits_of_an_iban_are_98_less_the_rest(country, account):
    number = int("".join(str(int(character, 36)) for character in f"{account}{country}00"))
    assert iban(f"{country}{98 - number % 97:02d}{account}")
    assert not iban(f"{country}{(98 - number % 97) % 97 + 1:02d}{account}") or number % 97 == 1


def test_messages_and_answers_are_redacted_alike_and_a_row_that_asks_for_personal_data_goes(tmp_path):
    asked = text("asked", "What is the address?", "me@example.org")
    said = text("said", "I am me@example.org. Who am I?", "You wrote from me@example.org today.")
    said |= {"answers": ["You wrote from me@example.org today.", "Nobody."]}
    write_dataset(tmp_path / "corpus", [asked, said, text("plain", "Is it?")])
    write_dataset(tmp_path / "heldout", [])
    curate(tmp_path, CurateConfig(recipe=(Schema(), Decode(), RedactPii())), tmp_path / "out", tmp_path / "state")
    out = open_dataset(tmp_path / "out" / "questions", verify=True)
    row, plain = out.rows()
    assert [turn["content"] for turn in row["messages"]] == [
        "I am [EMAIL]. Who am I?",
        "You wrote from [EMAIL] today.",
    ]
    assert row["answers"] == ["You wrote from [EMAIL] today.", "Nobody."]
    assert plain["messages"][0]["content"] == "Is it?"
    (reject,) = out.rejects()
    assert (reject["id"], reject["reason"]) == ("asked", "pii: the accepted answer is personal data ([EMAIL])")
    assert "me@example.org" not in (out.path / "funnel.html").read_text()


# Evaluation sets, difficulty, mixture


def test_rows_are_kept_from_every_evaluation_set(tmp_path):
    words = "which of the four provinces had no access to the sea"
    write_dataset(
        tmp_path / "corpus", [text("leaks", words), text("line", "Is this the held-out one?"), text("own", "?")]
    )
    write_dataset(tmp_path / "heldout", [text("h", "Is this the held-out one?")])
    write_dataset(tmp_path / "benchmark", [text("b", f"Tell me: {words}?")])
    recipe = (Schema(), Decode(), Decontaminate(ngram=6, evaluation_sets=(tmp_path / "benchmark",)))
    curate(tmp_path, CurateConfig(recipe=recipe), tmp_path / "out", tmp_path / "state")
    rejects = open_dataset(tmp_path / "out" / "questions").rejects()
    assert {one["id"]: one["reason"][-1] for one in rejects} == {"leaks": "b", "line": "h"}


def clip(row_id, start, end, answer="yes"):
    shown = {"bytes": CLIP, "start": start, "end": end, "kind": "video"}
    row = text(row_id, "<video>\nDoes anybody cross the street in this part?", answer)
    return row | {"media": [image_media(CLIP, image_format="MP4", width=32, height=32) | shown]}


def test_two_clips_of_one_video_are_no_duplicates(tmp_path):
    rows = [clip("a", 0.0, 2.0), clip("b", 2.0, 4.0), clip("again", 0.0, 2.0)]
    for operator in (ExactDuplicates(), NearDuplicateTexts()):
        dataset = write_dataset(tmp_path / operator.op, rows)
        recipe = (Schema(), Decode(videos=True), operator)
        found = apply_recipe(dataset, recipe, tmp_path / f"{operator.op}-state").rows.reasons
        assert found == [None, None, f"{operator.category}: of a"]


def test_the_video_of_an_evaluation_row_does_not_train_with_its_answer(tmp_path):
    recipe = (Schema(), Decode(videos=True), Decontaminate())
    held = write_dataset(tmp_path / "heldout", [clip("held", 0.0, 2.0, "Yes")])
    evaluation = apply_recipe(held, recipe, tmp_path / "held-state").rows
    rows = write_dataset(tmp_path / "rows", [clip("leaks", 0.0, 2.5), clip("other", 0.0, 2.5, "No")])
    found = apply_recipe(rows, recipe, tmp_path / "state", evaluation=(evaluation,)).rows.reasons
    assert found == ["contaminated: video and answer of evaluation row held", None]


def test_rows_that_are_too_easy_too_hard_or_unmeasured_go(tmp_path):
    path = tmp_path / "accuracies.parquet"
    pq.write_table(pa.table({"id": ["easy", "hard", "edge", "some"], "accuracy": [1.0, 0.0, 0.8, 0.4]}), path)
    rows = [text(name, f"{name}?") for name in ("easy", "hard", "edge", "some", "new")]
    _, found = applied(tmp_path, rows, Difficulty(accuracies=path))
    assert found == {
        "easy": "difficulty: accuracy 1.000 is not from 0.2 to 0.8",
        "hard": "difficulty: accuracy 0.000 is not from 0.2 to 0.8",
        "new": "difficulty: its accuracy was not measured",
    }


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (None, "not a Parquet file with the columns id and accuracy"),
        ({"id": ["a"]}, "not a Parquet file with the columns id and accuracy"),
        ({"id": ["a"], "accuracy": [1.5]}, "row 'a': accuracy must be from 0 to 1, not 1.5"),
        ({"id": ["a"], "accuracy": [math.nan]}, "row 'a': accuracy must be from 0 to 1, not nan"),
    ],
)
def test_a_wrong_file_of_accuracies_is_named(tmp_path, table, problem):
    path = tmp_path / "accuracies.parquet"
    if table:
        pq.write_table(pa.table(table), path)
    with pytest.raises(InputError, match=f"accuracies.parquet: {problem}"):
        applied(tmp_path, [text("a", "?")], Difficulty(accuracies=path))


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.dictionaries(st.sampled_from("abcde"), st.integers(1, 500), min_size=1),
    weights=st.dictionaries(st.sampled_from("abc"), st.floats(0, 10)),
    temperature=st.floats(0.5, 100),
    rows=st.integers(1, 2000),
)
def test_a_mixture_gives_exactly_the_rows_asked_for_within_one_of_every_share(sizes, weights, temperature, rows):
    section = Mixture(rows=rows, weights=weights, temperature=temperature, oversample=True)
    counts = mixture_counts(sizes, section)
    exact = {name: (weights.get(name, 1.0) * size) ** (1 / temperature) for name, size in sizes.items()}
    if whole := sum(exact.values()):
        assert sum(counts.values()) == rows
        assert all(abs(counts[name] - rows * share / whole) < 1 + 1e-6 for name, share in exact.items())
    under = mixture_counts(sizes, section.model_copy(update={"oversample": False}))
    assert under == {name: min(count, sizes[name]) for name, count in counts.items()}


def test_temperature_makes_groups_equal_and_copies_have_ids_of_their_own(tmp_path):
    rows = [text(f"a{index}", f"a {index}?", task="large") for index in range(30)]
    rows += [text(f"b{index}", f"b {index}?", task="little") for index in range(4)]
    write_dataset(tmp_path / "corpus", rows)
    write_dataset(tmp_path / "heldout", [])
    recipe = (Schema(), Decode(), Mixture(rows=20, temperature=1e9, oversample=True))
    curate(tmp_path, CurateConfig(recipe=recipe), tmp_path / "out", tmp_path / "state")
    out = open_dataset(tmp_path / "out" / "questions", verify=True)
    written = [row["id"] for row in out.rows()]
    assert sum(name.startswith("a") for name in written) == sum(name.startswith("b") for name in written) == 10
    assert len(set(written)) == 20
    assert {name.split("~")[0] for name in written if name.startswith("b")} == {"b0", "b1", "b2", "b3"}
    assert out.manifest["funnel"]["copied"] == 6
    assert len(out.rejects()) == 20


@pytest.mark.parametrize("low", [{"temperature": 0.01}, {"weights": {"a": 1e308}}])
def test_a_mixture_of_numbers_beyond_all_bounds_is_one_line(low):
    with pytest.raises(InputError, match=r"^mixture: temperature .* is too low"):
        mixture_counts({"a": 10_000}, Mixture(**low))


def test_copies_of_a_row_that_goes_later_are_not_counted(tmp_path):
    write_dataset(tmp_path / "corpus", [text("a", "a?"), text("b", "b?", license="other")])
    write_dataset(tmp_path / "heldout", [])
    recipe = (Schema(), Decode(), Mixture(rows=6, oversample=True), Licences(allowed=("CC0-1.0",)))
    curate(tmp_path, CurateConfig(recipe=recipe), tmp_path / "out", tmp_path / "state")
    funnel = open_dataset(tmp_path / "out" / "questions").manifest["funnel"]
    assert funnel["rows_in"] + funnel["copied"] == sum(funnel["rows_out"].values()) + sum(funnel["rejected"].values())
    assert funnel["copied"] == 2


def test_which_rows_a_mixture_draws_depends_on_ids_and_seed_alone(tmp_path):
    rows = [text(f"row-{index}", f"{index}?") for index in range(40)]
    lots = [
        applied(tmp_path / "one", rows, Mixture(rows=10))[1],
        applied(tmp_path / "two", rows[::-1], Mixture(rows=10))[1],
    ]
    assert lots[0].keys() == lots[1].keys()
    assert applied(tmp_path / "three", rows, Mixture(rows=10, seed=1))[1].keys() != lots[0].keys()


def test_copies_stay_apart_from_rows_that_have_their_ids(tmp_path):
    rows = [text("a", "a?"), text("a~2", "b?"), text("c", "c?", task="other")]
    write_dataset(tmp_path / "corpus", rows)
    write_dataset(tmp_path / "heldout", [])
    recipe = (Schema(), Decode(), ExactDuplicates(), Mixture(rows=8, oversample=True, weights={"other": 0}))
    curate(tmp_path, CurateConfig(recipe=recipe), tmp_path / "out", tmp_path / "state")
    written = [row["id"] for row in open_dataset(tmp_path / "out" / "questions").rows()]
    assert len(written) == len(set(written)) == 8
