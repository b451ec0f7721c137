"""select_queries: rows between the bounds are kept as they are, every other one is counted and says why."""

import pytest

from components.rollouts import Answer, QueryRollouts, read_rollouts, write_rollouts
from components.select_queries.config import SelectQueriesConfig
from components.select_queries.step import run
from model.data.artifact import payload_sha256
from model.data.errors import InputError
from model.data.shards import open_dataset
from tests.tiny import question_row
from tests.tiny_rollouts import guessing_rows, save_questions


def rollouts_of(row_id, right, count=10, outcome="wrong"):
    """``right`` of ``count`` answers are right, the others are ``outcome``."""
    answers = [Answer("8", 2, "stop", float(n < right), "right" if n < right else outcome) for n in range(count)]
    return QueryRollouts(row_id, "read", tuple(answers))


def test_an_answer_that_was_not_judged_is_neither_right_nor_wrong():
    assert rollouts_of("row", 2, 8, "failed").accuracy == 1
    assert rollouts_of("row", 0, 8, "failed").accuracy is None
    assert rollouts_of("row", 2, 8).accuracy == 0.25


@pytest.fixture
def world(tmp_path):
    """Rows answered rightly 0, 1, ... 10 times of ten, one never sampled, one that nothing judges."""
    rows = [question_row(f"row-{right}", [], "8") for right in range(11)]
    rows += [question_row("missing", [], "8"), question_row("open", [], "8", task="caption")]
    queries = [rollouts_of(f"row-{right}", right) for right in range(11)]
    queries += [rollouts_of("open", 0, 1, "continued"), rollouts_of("stranger", 5)]
    write_rollouts(tmp_path / "rollouts", queries, {"sampling": {}})
    return save_questions(tmp_path / "rows", rows), tmp_path / "rollouts"


def select(world, directory, context, **config):
    rows, rollouts = world
    result = run(
        SelectQueriesConfig(**config), rows=rows, rollouts=rollouts, queries=directory / "queries", context=context
    )
    return open_dataset(directory / "queries", verify=True), result


def test_both_bounds_belong_to_the_range(world, tmp_path, context):
    dataset, result = select(world, tmp_path, context)
    originals = {row["id"]: row for row in open_dataset(world[0]).rows()}
    assert [row["id"] for row in dataset.rows()] == [f"row-{right}" for right in range(2, 9)]
    assert all(row == originals[row["id"]] for row in dataset.rows())
    assert result.numbers == {
        "rows": 13, "kept": 7, "too_hard": 2, "too_easy": 2, "not_judged": 1, "no_rollouts": 1, "rollouts_of_no_row": 1
    }  # fmt: skip


def test_every_other_row_is_a_reject_with_its_reason(world, tmp_path, context):
    dataset, _ = select(world, tmp_path, context)
    assert {reject["id"]: reject["reason"] for reject in dataset.rejects()} == {
        "row-0": "too hard: accuracy 0.000",
        "row-1": "too hard: accuracy 0.100",
        "row-9": "too easy: accuracy 0.900",
        "row-10": "too easy: accuracy 1.000",
        "missing": "no rollouts",
        "open": "not judged",
    }


def test_the_report_lies_beside_the_payload(world, tmp_path, context):
    dataset, _ = select(world, tmp_path, context)
    page = (tmp_path / "queries" / "report.html").read_text()
    assert "7 of 13 rows" in page and "Accuracy of a query" in page
    assert payload_sha256(tmp_path / "queries") == dataset.manifest["payload_sha256"]


def test_nothing_between_the_bounds_is_one_line_with_the_histogram(world, tmp_path, context):
    with pytest.raises(InputError) as error:
        select(world, tmp_path, context, lowest_accuracy=0.55, highest_accuracy=0.58)
    text = str(error.value)
    assert "no row has an accuracy between 0.55 and 0.58: of 13 rows 1 at 0 %, 1 at up to 10 %" in text
    assert "1 at 100 %; 1 have no rollouts" in text and "\n" not in text
    assert not (tmp_path / "queries").exists()


def test_a_directory_without_rollouts_is_named(world, tmp_path, context):
    with pytest.raises(InputError, match=r"rollouts\.parquet: no such file"):
        select((world[0], world[0]), tmp_path, context)
    (tmp_path / "rollouts" / "rollouts.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"rollouts\.parquet: not a readable Parquet file"):
        select(world, tmp_path, context)


def test_rollouts_come_back_as_they_were_written(tmp_path):
    queries = [rollouts_of(row["id"], 3, 4, "malformed") for row in guessing_rows(600)]
    write_rollouts(tmp_path / "one", iter(queries), {})
    write_rollouts(tmp_path / "two", queries, {})
    assert list(read_rollouts(tmp_path / "one")) == queries
    assert payload_sha256(tmp_path / "one") == payload_sha256(tmp_path / "two")
    with pytest.raises(InputError, match="exists already"):
        write_rollouts(tmp_path / "one", queries, {})
