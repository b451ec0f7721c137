"""The page of the funnel, the statistics and the drift of ``curate``."""

import math
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp

from components.curate.config import CurateConfig, PreviousVersion
from components.curate.drift import drift, kolmogorov_smirnov, psi, shape_of
from components.curate.funnel import EXAMPLES
from components.curate.recipe import DEFAULT, Decode, Mixture, RedactPii, Schema, Size, Statistics
from model.data.artifact import payload_sha256
from model.data.errors import InputError
from model.data.shards import open_dataset, write_dataset
from tests.components.test_curate_engine import curate
from tests.tiny import question_row

HOSTILE = "</script><img src=x onerror=alert(1)> & \"quoted\" 'text'"


def noise(seed, side=60):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def curated(directory, rows, recipe=DEFAULT, **options):
    """The dataset ``questions`` of these rows."""
    write_dataset(directory / "corpus", rows)
    write_dataset(directory / "heldout", [])
    curate(directory, CurateConfig(recipe=recipe, **options), directory / "out", directory / "state")
    return open_dataset(directory / "out" / "questions", verify=True)


class Tags(HTMLParser):
    """Every tag with its attributes, and the text between them."""

    def __init__(self):
        super().__init__()
        self.found, self.said = [], ""

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.said += data


def page_of(dataset):
    tags = Tags()
    tags.feed((dataset.path / "funnel.html").read_text())
    return tags


def test_the_page_shows_counts_reasons_and_pictures_and_refers_to_nothing_outside(tmp_path):
    rows = [
        question_row("good", [noise(0)], "1"),
        question_row("copy", [noise(0)], "1"),
        question_row("bad", [noise(1)], "1"),
    ]
    rows[2]["media"][0] |= {"bytes": b"no image", "sha256": None}
    page = page_of(curated(tmp_path, rows))
    assert "3 rows came in" in page.said and "2 were rejected" in page.said
    assert "duplicate: of good" in page.said and "not an image of a known format" in page.said
    sources = [attributes["src"] for tag, attributes in page.found if tag == "img"]
    assert len(sources) == 2  # the copy, and what it repeats
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not {"script", "link", "iframe", "a"} & {tag for tag, _ in page.found}
    assert not [name for _, attributes in page.found for name in attributes if name == "href" or name.startswith("on")]


def test_what_rows_say_is_escaped(tmp_path):
    rows = [question_row(HOSTILE, [noise(0, 8)], "1", HOSTILE, task="t"), question_row("good", [noise(1)], "1")]
    page = page_of(curated(tmp_path, rows, (Schema(), Decode(), Size())))
    assert page.said.count(HOSTILE) == 2
    assert "script" not in {tag for tag, _ in page.found}


def test_the_page_is_bounded_whatever_was_rejected(tmp_path):
    rows = [question_row(f"row-{n}", [noise(n, 300)] * 5, "1", "word " * 5000) for n in range(3 * EXAMPLES)]
    dataset = curated(tmp_path, rows, (Schema(), Decode(), Size(min_side=400)))
    page = page_of(dataset)
    assert sum(tag == "figure" for tag, _ in page.found) == EXAMPLES
    assert (dataset.path / "funnel.html").stat().st_size < 2_000_000


def test_the_page_is_no_payload_and_is_the_same_for_the_same_rows(tmp_path):
    rows = [question_row(f"row-{n // 2}", [noise(n // 2)], "1") for n in range(12)]
    first, second = curated(tmp_path / "a", rows), curated(tmp_path / "b", rows)
    pages = [(dataset.path / "funnel.html").read_bytes() for dataset in (first, second)]
    assert pages[0] == pages[1]
    (first.path / "funnel.html").unlink()
    assert payload_sha256(first.path) == payload_sha256(second.path) == first.manifest["payload_sha256"]


def test_statistics_count_the_rows_that_are_written_copies_included(tmp_path):
    rows = [question_row(f"row-{n}", [noise(n)], "x" * n) for n in range(1, 6)]
    recipe = (Schema(), Decode(), Statistics(), Mixture(rows=10, oversample=True))
    dataset = curated(tmp_path, rows, recipe)
    found = dataset.manifest["statistics"]
    lengths = [len("What?\n") + len(row["answers"][0]) for row in dataset.rows()]
    bins = Counter(2 ** math.ceil(math.log2(length)) for length in lengths)
    assert found["characters"] == {"total": sum(lengths), "bins": {str(edge): bins[edge] for edge in sorted(bins)}}
    assert found["tiles"] == {"total": 10, "bins": {"1": 10}}


def test_the_funnel_follows_the_recipe(tmp_path):
    rows = [question_row("good", [noise(0)], "1"), question_row("small", [noise(1, 8)], "1")]
    recipe = (Schema(), Decode(), Size(), RedactPii())
    funnel = curated(tmp_path, rows, recipe).manifest["funnel"]
    assert funnel["rejected"] == {"schema": 0, "image": 0, "size": 1, "pii": 0}
    assert [one["op"] for one in funnel["operators"]] == ["schema", "decode", "size", "redact_pii"]
    assert [one["rows_out"] for one in funnel["operators"]] == [2, 2, 1, 1]


# Drift


def test_drift_against_the_previous_version_is_in_manifest_and_page(tmp_path):
    before = [question_row(f"a{n}", [noise(n)], "1", task="read" if n < 5 else "gone") for n in range(10)]
    write_dataset(tmp_path / "before", before)
    rows = [question_row(f"b{n}", [noise(100 + n, 120)], "1", task="read") for n in range(10)]
    previous = PreviousVersion(questions=tmp_path / "before")
    dataset = curated(tmp_path, rows, previous=previous)
    found = dataset.manifest["drift"]
    assert found["rows"] == {"new": 10, "previous": 10}
    assert found["labels"]["source"]["psi"] == 0
    assert found["labels"]["task"]["shares"][0] == {"label": "read", "new": 1.0, "previous": 0.5}
    shares = ((10.5 / 11, 5.5 / 11), (0.5 / 11, 5.5 / 11))
    assert found["labels"]["task"]["psi"] == pytest.approx(sum((p - q) * math.log(p / q) for p, q in shares), abs=1e-6)
    assert found["numbers"]["width"] == {
        "ks": 1.0,
        "new": {"0.05": 120.0, "0.5": 120.0, "0.95": 120.0},
        "previous": {"0.05": 60.0, "0.5": 60.0, "0.95": 60.0},
    }
    said = " ".join(page_of(dataset).said.split())
    assert "Drift against the previous version" in said and "width60 / 60 / 60120 / 120 / 120 1.0000" in said
    assert "drift" not in open_dataset(tmp_path / "out" / "transcriptions").manifest


def test_the_previous_version_changes_no_row(tmp_path):
    rows = [question_row(f"row-{n}", [noise(n)], "1") for n in range(3)]
    alone = curated(tmp_path / "alone", rows)
    beside = curated(tmp_path / "beside", rows, previous=PreviousVersion(questions=alone.path))
    assert payload_sha256(alone.path) == payload_sha256(beside.path)
    found = beside.manifest["drift"]
    assert {one["psi"] for one in found["labels"].values()} | {one["ks"] for one in found["numbers"].values()} == {0}


def test_a_missing_previous_version_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such dataset directory"):
        curated(tmp_path, [], previous=PreviousVersion(questions=tmp_path / "nowhere"))


NUMBERS = st.lists(st.integers(0, 20).map(float), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(NUMBERS, NUMBERS)
def test_kolmogorov_smirnov_is_that_of_scipy(first, second):
    with np.errstate(divide="ignore"):
        expected = ks_2samp(first, second, method="asymp").statistic
    assert kolmogorov_smirnov(first, second) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 999)),
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 999)),
)
def test_psi_is_symmetric_never_negative_and_zero_for_the_same_counts(first, second):
    assert psi(first, second) == pytest.approx(psi(second, first))
    assert psi(first, second) >= 0
    assert psi(first, first) == 0


def test_psi_by_hand():
    # Shares of 0.75 and 0.25 against a half each, once every count is raised by one half.
    assert psi({"a": 14.5, "b": 4.5}, {"a": 9.5, "b": 9.5}) == pytest.approx(0.25 * math.log(1.5) + 0.25 * math.log(2))


def test_the_shape_of_a_dataset_is_read_without_its_media(tmp_path):
    rows = [question_row(f"row-{n}", [noise(n), noise(n + 50, 30)], "12", task="read") for n in range(4)]
    shape = shape_of(write_dataset(tmp_path / "rows", rows, shards=2))
    assert shape.rows == 4
    assert sorted(shape.numbers["width"]) == [30] * 4 + [60] * 4
    assert shape.numbers["images"] == [2] * 4
    assert drift(shape, shape)["labels"]["task"]["shares"] == [{"label": "read", "new": 1.0, "previous": 1.0}]


def test_categories_of_operators_are_words_without_a_colon():
    from typing import get_args

    from components.curate.recipe import Operator

    sections = get_args(get_args(Operator)[0])
    assert all(re.fullmatch(r"[a-z_]+", section.category) for section in sections)
    assert len({section.model_fields["op"].default for section in sections}) == len(sections)
