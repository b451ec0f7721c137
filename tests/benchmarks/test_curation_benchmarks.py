"""The benchmarks of curation: material is distinct, plants are what they say, peers decide as they claim."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import curation, curation_plants, dedup_quality
from benchmarks.curation_corpus import captions, digit_canvases, documents, encode, image_row, photographs, text_row
from benchmarks.harness import REPOSITORY
from benchmarks.peers import pil_pool
from components.curate.images import inspect_image, perceptual_hash
from components.curate.near_texts import jaccard
from components.curate.recipe import Decode
from model.data.schema import check_row
from model.data.shards import write_dataset


def test_material_is_sound_distinct_and_the_same_every_time():
    rows = [*curation.picture_rows(40), *curation.document_rows(20)]
    assert [check_row(row) for row in rows] == [None] * len(rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert rows == [*curation.picture_rows(40), *curation.document_rows(20)]
    assert len({image.tobytes() for image in photographs(200, side=32)}) == 200
    with pytest.raises(ValueError, match="1152 distinct"):
        list(photographs(1153, side=2))


def test_documents_share_no_phrases_and_captions_share_most_words():
    shingles = [{tuple(words[i : i + 3]) for i in range(len(words))} for words in map(str.split, documents(30, seed=0))]
    pairs = [jaccard(a, b) for number, a in enumerate(shingles) for b in shingles[:number]]
    assert max(pairs) < 0.05
    made = captions(300, seed=0)
    assert len(set(made)) == 300
    assert np.mean([jaccard(set(a.split()), set(made[0].split())) for a in made[1:]]) > 0.4


def test_plants_are_what_they_say():
    (photo,) = photographs(1, side=200)
    assert curation_plants.resized(photo).size == (140, 140)
    assert curation_plants.cropped(photo).size == (190, 190)
    caption = "The photo shows a red car that waits near the lake at dawn."
    assert curation_plants.fronted(caption) == "At dawn, a red car waits near the lake, as the photo shows."
    assert (
        curation_plants.synonyms(caption)
        == "The picture depicts a red car that stands waiting close to the lake at dawn."
    )
    changed = curation_plants.typo(caption, np.random.default_rng(0))
    assert sum(a != b for a, b in zip(changed.split(), caption.split(), strict=True)) == 1
    for caption in captions(100, seed=1):
        assert curation_plants.fronted(caption) != caption


def test_the_pool_hashes_and_compares_as_the_recipe_does():
    for image in [*photographs(6, side=96), *digit_canvases(6, seed=0)]:
        row = image_row("a", image, "task")
        facts = inspect_image(row["media"][0], Decode())
        sha256, bits, _, _ = pil_pool.check(row["media"][0]["bytes"])
        assert (sha256, f"{bits:016x}") == (facts.sha256, facts.phash)
    one, two = (pil_pool.check(encode(image)) for image in photographs(2, side=96))
    assert pil_pool.alike(one, one)
    assert not pil_pool.alike(one, two)
    assert pil_pool.check(b"\xff\xd8 broken") is None


def test_the_pool_keeps_the_first_of_duplicates_and_refuses_what_is_broken(tmp_path):
    (photo,) = photographs(1, side=128)
    broken = image_row("broken", photo, "photo")
    broken["media"][0]["bytes"] = broken["media"][0]["bytes"][:300]
    rows = [image_row("a", photo, "photo"), image_row("b", photo, "photo", 60), image_row("c", photo, "other"), broken]
    rows.append(image_row("small", Image.new("RGB", (20, 40)), "photo"))
    write_dataset(tmp_path / "rows", rows)
    assert pil_pool.curate(tmp_path / "rows", tmp_path / "kept", workers=1) == ["a", "c"]


@pytest.mark.slow
def test_datatrove_keeps_one_of_each_group_that_passes_its_filters(tmp_path):
    texts = documents(6, seed=1)
    rows = [text_row(f"text-{number}", text) for number, text in enumerate(texts)]
    rows[1]["license"] = "proprietary"
    rows[2] = text_row("text-2", curation.GERMAN * 8)
    rows.append(text_row("text-3~copy", curation_plants.typo(texts[3], np.random.default_rng(0))))
    write_dataset(tmp_path / "rows", rows, shards=2)
    command = [sys.executable, "-m", "benchmarks.curation_runs", "datatrove", tmp_path / "rows", tmp_path / "out"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    kept = json.loads(done.stdout.splitlines()[-1])["kept"]
    assert curation.groups(kept) == ["text-0", "text-3", "text-4", "text-5"]


def test_intervals_are_wilsons():
    # Newcombe (1998), table I: 81 of 263 and 15 of 148.
    assert dedup_quality.wilson(81, 263) == pytest.approx((0.3080, 0.2553, 0.3662), abs=1e-4)
    assert dedup_quality.wilson(15, 148) == pytest.approx((0.1014, 0.0624, 0.1605), abs=1e-4)
    assert dedup_quality.wilson(0, 0) == (0.0, 0.0, 1.0)


def test_quality_counts_finds_misses_and_false_alarms():
    plants = {"a~copy": ("resized", "a"), "b~copy": ("resized", "b"), "c~copy": ("cropped 5 %", "c")}
    found = dedup_quality.quality({"a~copy", "c~copy", "d", "e"}, plants)
    assert (found["recall"].value, found["precision"].value) == (0.6667, 0.5)
    assert found["f1"] == pytest.approx(4 / 7, abs=1e-3)
    assert {how: rate.value for how, rate in found["recall_by_way"].items()} == {"resized": 0.5, "cropped 5 %": 1.0}


def test_the_hash_alone_refuses_what_is_near_an_earlier_picture_of_its_task():
    one, two = photographs(2, side=96)
    assert (perceptual_hash(one) ^ perceptual_hash(two)).bit_count() > 4
    rows = [image_row("a", one, "x"), image_row("b", two, "x"), image_row("c", one, "x", 50), image_row("d", one, "y")]
    assert dedup_quality.refused_by_hash(rows, 4) == {"c"}
