"""evaluate: raw answers first, then scores; swapped images; resuming; bad input."""

import json
import math

import pyarrow.parquet as pq
import pytest

from components import answering
from components.evaluate import step
from components.evaluate.config import EvaluateConfig
from components.evaluate.step import run, score_stored
from components.predictions import PREDICTIONS, SCORES, read_predictions, write_predictions
from model.data.artifact import payload_sha256
from model.data.errors import InputError
from model.data.shards import open_dataset, write_dataset
from scoring.score import score_answer

CONFIG = EvaluateConfig(batch_size=2, max_new_tokens=4, threads=1, bootstrap=100)


@pytest.fixture(scope="module")
def evaluated(random_models, heldout, tmp_path_factory):
    """A finished evaluation of the first random model, and what the step reported."""
    from components.context import StepContext

    directory = tmp_path_factory.mktemp("evaluated")
    context = StepContext(state_dir=directory / "state")
    result = run(CONFIG, model=random_models[0], heldout=heldout, evaluation=directory / "evaluation", context=context)
    return directory / "evaluation", result


def test_there_is_one_raw_answer_per_row_in_the_order_of_the_rows(evaluated, heldout_rows):
    table = pq.read_table(evaluated[0] / PREDICTIONS)
    assert table.column_names == ["id", "task", "prediction", "swapped_prediction"]
    assert table["id"].to_pylist() == [row["id"] for row in heldout_rows]
    assert table["task"].to_pylist() == [row["task"] for row in heldout_rows]
    assert None not in table["swapped_prediction"].to_pylist()


def test_the_raw_answers_say_what_they_are_answers_of(evaluated, random_models, heldout):
    origin = read_predictions(evaluated[0]).origin
    assert origin.model_sha256 == payload_sha256(random_models[0])
    assert origin.heldout_sha256 == payload_sha256(heldout)
    assert (origin.max_new_tokens, origin.precision) == (4, "float32")


def test_the_answers_are_those_of_the_model_alone(evaluated, random_models, heldout_rows):
    from model.families.generation import answer_rows
    from model.flash.checkpoint import load_model, load_processor

    network, processor = load_model(random_models[0]), load_processor(random_models[0])
    alone = [answer_rows(network, processor, [row], batch_size=1, max_new_tokens=4)[0] for row in heldout_rows]
    assert read_predictions(evaluated[0]).answers == alone
    assert len(set(alone)) > 1


def test_the_scores_are_the_mean_of_the_rows_own_scorers(evaluated, heldout_rows):
    document = json.loads((evaluated[0] / SCORES).read_text())
    answers = read_predictions(evaluated[0]).answers
    for family, entry in document["families"].items():
        values = [
            score_answer(row["scorer"]["name"], row["scorer"]["parameters"], answer, row["answers"])
            for row, answer in zip(heldout_rows, answers, strict=True)
            if row["task"] == family
        ]
        assert entry["n"] == len(values) == 4
        assert entry["score"] == pytest.approx(sum(score.value for score in values) / 4)
        assert entry["unparsed"] == sum(not score.parsed for score in values)
        assert entry["low"] <= entry["score"] <= entry["high"]
        assert 0 < entry["constant"] <= 1
        assert entry["constant_answer"]
    assert set(document["families"]) == {"transcribe", "read", "count", "maximum", "locate"}
    assert document["mean"] == pytest.approx(math.fsum(f["score"] for f in document["families"].values()) / 5)


def test_the_step_reports_the_table_that_it_wrote(evaluated):
    document = json.loads((evaluated[0] / SCORES).read_text())
    result = evaluated[1]
    assert result.numbers["rows"] == 20
    assert result.numbers["mean"] == document["mean"]
    assert {family: score.score for family, score in result.heldout.items()} == {
        family: entry["score"] for family, entry in document["families"].items()
    }


def test_the_same_inputs_give_the_same_bytes_whatever_the_batch(evaluated, random_models, heldout, tmp_path, context):
    again = tmp_path / "again"
    wide = CONFIG.model_copy(update={"batch_size": 64})
    run(wide, model=random_models[0], heldout=heldout, evaluation=again, context=context)
    assert payload_sha256(again) == payload_sha256(evaluated[0])


def test_stored_answers_are_what_is_scored(evaluated, heldout_rows, tmp_path):
    origin = read_predictions(evaluated[0]).origin
    truths = [row["answers"][0] for row in heldout_rows]
    write_predictions(tmp_path, heldout_rows, truths, [None] * len(truths), origin)
    table = score_stored(CONFIG, tmp_path, heldout_rows)
    assert {(family.score, family.swapped, family.unparsed) for family in table.values()} == {(1.0, None, 0)}


def test_answers_to_swapped_images_are_scored_too(evaluated, heldout_rows, tmp_path):
    origin = read_predictions(evaluated[0]).origin
    truths = [row["answers"][0] for row in heldout_rows]
    write_predictions(tmp_path, heldout_rows, ["?"] * len(truths), [*truths[:-1], None], origin)
    table = score_stored(CONFIG, tmp_path, heldout_rows)
    assert {(family.score, family.swapped) for family in table.values()} == {(0.0, 1.0)}
    assert all(family.swapped is not None for family in evaluated[1].heldout.values())


def test_kept_answers_to_other_rows_are_not_used(evaluated, random_models, heldout, heldout_rows, tmp_path, context):
    write_dataset(tmp_path / "reversed", heldout_rows[::-1])
    run(CONFIG, model=random_models[0], heldout=tmp_path / "reversed", evaluation=tmp_path / "first", context=context)
    run(CONFIG, model=random_models[0], heldout=heldout, evaluation=tmp_path / "second", context=context)
    assert payload_sha256(tmp_path / "second") == payload_sha256(evaluated[0])


def test_raw_answers_survive_when_scoring_fails(random_models, heldout, tmp_path, context, monkeypatch, heldout_rows):
    def fail(*_, **__):
        raise RuntimeError("scoring failed")

    monkeypatch.setattr(step, "score_predictions", fail)
    with pytest.raises(RuntimeError, match="scoring failed"):
        run(CONFIG, model=random_models[0], heldout=heldout, evaluation=tmp_path / "evaluation", context=context)
    assert len(read_predictions(tmp_path / "evaluation").answers) == len(heldout_rows)


def test_a_killed_run_goes_on_where_it_stopped(evaluated, random_models, heldout, tmp_path, context, monkeypatch):
    class Killed(BaseException):
        pass

    answered = []
    answer_rows = answering.answer_rows

    def counting(model, processor, rows, **options):
        answered.append(len(rows))
        return answer_rows(model, processor, rows, **options)

    def kill_after_the_first_part(label, done, total):
        if done > 8:
            raise Killed

    monkeypatch.setattr(answering, "answer_rows", counting)
    inputs = {"model": random_models[0], "heldout": heldout, "evaluation": tmp_path / "evaluation"}
    context.progress = kill_after_the_first_part
    with pytest.raises(Killed):
        run(CONFIG, **inputs, context=context)
    assert answered == [8, 8]
    seen = []
    context.progress = lambda label, done, total: seen.append((label, done, total))
    run(CONFIG, **inputs, context=context)
    assert answered == [8, 8, 8, 4, 8, 8, 4]
    assert seen[0] == ("answering", 8, 20)
    assert seen[-1] == ("images swapped", 20, 20)
    assert payload_sha256(tmp_path / "evaluation") == payload_sha256(evaluated[0])


def test_without_swapping_no_swapped_score_is_given(random_models, heldout, tmp_path, context):
    config = CONFIG.model_copy(update={"swapped": False})
    result = run(config, model=random_models[0], heldout=heldout, evaluation=tmp_path / "evaluation", context=context)
    assert all(family.swapped is None for family in result.heldout.values())
    assert "swapped_mean" not in result.numbers
    assert set(read_predictions(tmp_path / "evaluation").swapped) == {None}


def test_text_only_rows_are_answered_and_never_swapped(random_models, heldout_rows, tmp_path, context):
    messages = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "3"}]
    rows = [
        {**row, "id": f"text-{i}", "media": [], "messages": messages, "answers": ["3"], "task": "text"}
        for i, row in enumerate(heldout_rows[:2])
    ]
    write_dataset(tmp_path / "heldout", rows)
    output = tmp_path / "evaluation"
    result = run(CONFIG, model=random_models[0], heldout=tmp_path / "heldout", evaluation=output, context=context)
    assert result.heldout["text"].n == 2
    assert read_predictions(output).swapped == [None, None]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scorer": {"name": "bleu", "parameters": "{}"}}, "row 'odd': unknown scorer 'bleu'"),
        (
            {"scorer": {"name": "box_iou", "parameters": "{}"}, "answers": ["left"]},
            "row 'odd'.*cannot read the reference",
        ),
        ({"scorer": {"name": "box_iou", "parameters": "{}"}, "answers": ["5 5 5 5"]}, "row 'odd'.*rejects its own"),
        ({"scorer": {"name": "exact", "parameters": '{"x": 1}'}}, "row 'odd'.*unknown key 'x'"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named_before_any_model_is_loaded(
    change, reason, heldout_rows, tmp_path, context
):
    write_dataset(tmp_path / "heldout", [heldout_rows[0], {**heldout_rows[1], "id": "odd", **change}])
    with pytest.raises(InputError, match=reason):
        run(
            CONFIG,
            model=tmp_path / "no-model",
            heldout=tmp_path / "heldout",
            evaluation=tmp_path / "evaluation",
            context=context,
        )
    assert not (tmp_path / "evaluation").exists()


def test_missing_inputs_are_named(random_models, heldout, tmp_path, context):
    output = tmp_path / "evaluation"
    with pytest.raises(InputError, match="absent: no such model directory"):
        run(CONFIG, model=tmp_path / "absent", heldout=heldout, evaluation=output, context=context)
    with pytest.raises(InputError, match="absent: no such dataset directory"):
        run(CONFIG, model=random_models[0], heldout=tmp_path / "absent", evaluation=output, context=context)
    write_dataset(tmp_path / "empty", [])
    with pytest.raises(InputError, match="empty: no held-out rows"):
        run(CONFIG, model=random_models[0], heldout=tmp_path / "empty", evaluation=output, context=context)
    assert not output.exists()


def test_damaged_raw_answers_are_named(evaluated, heldout, tmp_path):
    rows = list(open_dataset(heldout).rows())
    with pytest.raises(InputError, match=r"predictions\.parquet: no such file"):
        score_stored(CONFIG, tmp_path, rows)
    whole = (evaluated[0] / PREDICTIONS).read_bytes()
    (tmp_path / PREDICTIONS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"predictions\.parquet: not a readable file"):
        score_stored(CONFIG, tmp_path, rows)
    (tmp_path / PREDICTIONS).write_bytes(whole)
    with pytest.raises(InputError, match="not those of the held-out dataset"):
        score_stored(CONFIG, tmp_path, rows[::-1])
    pq.write_table(pq.read_table(evaluated[0] / PREDICTIONS).drop_columns(["task"]), tmp_path / PREDICTIONS)
    with pytest.raises(InputError, match="columns"):
        score_stored(CONFIG, tmp_path, rows)
