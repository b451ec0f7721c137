"""What a family of the embedded corpus holds out occurs in no training row."""

import re
import string
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.collect.canvas import Painter
from components.collect.embedded.config import EmbeddedConfig, PageLayout, Photo, ScreenLayout, Table
from components.collect.embedded.grounding import COLOURS, SHAPES, split_combinations
from components.collect.embedded.lexicon import WORDS, split_words
from components.collect.embedded.rows import embedded_rows
from components.collect.embedded.text_arithmetic import is_heldout


def splits(family, rows=40, **changes):
    config = EmbeddedConfig.model_validate({"heldout": rows, family: {"rows": rows} | changes})
    return [list(split) for split in embedded_rows(config)]


def question(row):
    return row["messages"][0]["content"].splitlines()[-1]


def of(row):
    """What follows the name of the collection in the source: a table, a photograph, a layout."""
    return re.split(r": | (?=\S+$)", row["source"])[-1]


@pytest.mark.parametrize("family", ["arithmetic", "comparison", "clips"])
def test_glyphs(family, monkeypatch):
    used, drawn = [set(), set()], []
    patch = Painter.patch

    def recorded(self, index, size):
        used[len(drawn)].add(self._glyphs.images[index].tobytes())
        return patch(self, index, size)

    monkeypatch.setattr(Painter, "patch", recorded)
    config = EmbeddedConfig.model_validate({"heldout": 40, family: {"rows": 40}})
    for rows in embedded_rows(config):
        drawn.append(list(rows))
        assert len(drawn[-1]) == 120
    assert min(map(len, used)) > 30
    assert used[0].isdisjoint(used[1])


def test_words():
    train, heldout = ({row["answers"][0] for row in rows} for rows in splits("words", 150, tasks=["word"]))
    assert min(len(train), len(heldout)) > 30
    assert train.isdisjoint(heldout)
    assert {letter for word in heldout for letter in word} <= {
        letter for word in split_words(0.2, 0)[0] for letter in word
    }


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0.01, 0.49), seed=st.integers(0, 2**31))
def test_every_letter_of_a_held_out_word_is_seen(share, seed):
    train, heldout = split_words(share, seed)
    assert sorted((*train, *heldout)) == sorted(WORDS)
    assert len(heldout) == round(share * len(WORDS))
    assert set("".join(heldout)) <= set("".join(train)) == set(string.ascii_lowercase)


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0.01, 0.49), seed=st.integers(0, 2**31))
def test_every_colour_and_shape_is_seen(share, seed):
    train, heldout = split_combinations(share, seed)
    assert len({*train, *heldout}) == len(train) + len(heldout) == len(COLOURS) * len(SHAPES)
    assert heldout
    assert {colour for colour, _ in train} == set(COLOURS)
    assert {shape for _, shape in train} == set(SHAPES)


def test_combinations_of_colour_and_shape():
    train, heldout = ({question(row) for row in rows} for rows in splits("grounding", 200))
    assert train.isdisjoint(heldout)
    assert len(train) > 25


@pytest.mark.parametrize(
    ("family", "key", "everything", "task"),
    [
        ("charts", "heldout_tables", get_args(Table), "chart_value"),
        ("pages", "heldout_layouts", get_args(PageLayout), "page_field"),
        ("photos", "heldout_photos", get_args(Photo), "photo_change"),
        ("screens", "heldout_layouts", get_args(ScreenLayout), "click"),
    ],
)
def test_what_the_configuration_names(family, key, everything, task):
    by_default = getattr(getattr(EmbeddedConfig.model_validate({family: {"rows": 1}}), family), key)
    for held in (set(by_default), set(everything[-1:])):
        train, unseen = splits(family, 90, tasks=[task], **{key: sorted(held)})
        assert {of(row) for row in unseen} == held
        assert {of(row) for row in train} == set(everything) - held


def test_words_on_pages():
    def words(rows):
        bodies = (re.sub(r"<[^>]*>", " ", row["answers"][0]) for row in rows)
        return {word for body in bodies for word in re.findall(r"\b[a-z]+\b", body)} - {"html"}

    train, heldout = (words(rows) for rows in splits("pages", tasks=["page_html"]))
    assert min(len(train), len(heldout)) > 50
    assert train.isdisjoint(heldout)


def test_pairs_of_operands_in_either_order():
    def pairs(rows):
        return {tuple(sorted(map(int, re.findall(r"\d+", question(row))))) for row in rows}

    train, heldout = (pairs(rows) for rows in splits("text_arithmetic", 300, digits=[1, 2]))
    assert min(len(train), len(heldout)) > 100
    assert train.isdisjoint(heldout)


@settings(max_examples=60, deadline=None)
@given(first=st.integers(0, 10**9), second=st.integers(0, 10**9), seed=st.integers(0, 10))
def test_a_pair_and_its_exchange_are_on_the_same_side(first, second, seed):
    assert is_heldout(first, second, 0.2, seed) == is_heldout(second, first, 0.2, seed)
    assert not is_heldout(first, second, 0.0, seed)


def test_about_the_share_that_was_asked_for_is_held_out():
    pairs = [is_heldout(first, second, 0.2, 0) for first in range(60) for second in range(first, 60)]
    assert 0.16 < sum(pairs) / len(pairs) < 0.24
