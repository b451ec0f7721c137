"""Importers: who is held out, and what rows are called."""

import numpy as np
import pytest

from components.collect.importers.rows import Ids
from tests.source_builders import import_all, questions_csv, says, write_csv, write_images, write_jsonl


def test_the_same_source_gives_the_same_split_and_all_rows_about_an_image_one_side(tmp_path):
    names = write_images(tmp_path, 40)
    table = [[name, f"{number}?", f"{number}"] for name in names for number in range(3)]
    write_csv(tmp_path / "q.csv", [["image", "question", "answer"], *table])
    one, two = (import_all(tmp_path, heldout_share=0.3) for _ in range(2))
    assert one.train == two.train and one.heldout == two.heldout
    shown = [{row["media"][0]["sha256"] for row in rows} for rows in (one.train, one.heldout)]
    assert shown[0].isdisjoint(shown[1])
    assert len(shown[1]) == pytest.approx(12, abs=6)
    other = import_all(tmp_path, heldout_share=0.3, seed=1)
    assert {row["id"] for row in other.heldout} != {row["id"] for row in one.heldout}


def test_two_spellings_of_a_path_are_one_image(tmp_path):
    names = write_images(tmp_path / "img", 20)
    table = [[f"{before}img/{name}", f"{before}?", "yes"] for name in names for before in ("", "./", "img/../")]
    write_csv(tmp_path / "q.csv", [["image", "question", "answer"], *table])
    imported = import_all(tmp_path, heldout_share=0.4)
    shown = [{row["media"][0]["sha256"] for row in rows} for rows in (imported.train, imported.heldout)]
    assert len(imported.rows) == 60 and shown[0].isdisjoint(shown[1])


def test_a_small_source_has_one_held_out_row(tmp_path):
    imported = import_all(questions_csv(tmp_path, 3), heldout_share=0.0001)
    assert (len(imported.train), len(imported.heldout)) == (2, 1)


def test_a_share_of_the_training_rows_may_pre_train(tmp_path):
    imported = import_all(questions_csv(tmp_path, 200), pretrain_share=0.4)
    share = sum(row["task"] == "pretrain" for row in imported.train) / len(imported.train)
    assert share == pytest.approx(0.4, abs=0.1)
    assert {row["task"] for row in imported.heldout} == {"answer"}


def test_an_id_that_is_taken_gets_its_place_and_no_row_is_lost(tmp_path):
    lines = [{"id": "same", "conversations": says(f"{index}", "yes")} for index in range(4)]
    write_jsonl(tmp_path / "a.jsonl", lines)
    imported = import_all(tmp_path)
    assert len({row["id"] for row in imported.rows}) == 4
    assert all(row["id"].startswith("same") for row in imported.rows)


def test_ids_are_told_apart_however_many_there_are():
    ids = Ids()
    rng = np.random.default_rng(0)
    names = [str(number) for number in rng.integers(0, 90_000, 120_000)]
    seen: set[str] = set()
    for name in names:
        assert ids.take(name) == (name not in seen)
        seen.add(name)
