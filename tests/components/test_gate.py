"""gate: the champion, its recorded or fresh answers, the paired verdict."""

import json
import math

import pytest

from components import answering
from components.context import RegisteredModel, StepContext
from components.evaluate.config import EvaluateConfig
from components.evaluate.step import run as evaluate
from components.gate.config import GateConfig
from components.gate.step import champion_answers, judge, local_path, run
from components.predictions import PREDICTIONS, Origin, origin_of, read_predictions, write_predictions
from model.data.artifact import payload_sha256
from model.data.errors import InputError
from model.data.shards import open_dataset, write_dataset
from scoring.intervals import Interval

CONFIG = GateConfig(bootstrap=500, threads=1)
EVALUATION = EvaluateConfig(max_new_tokens=4, threads=1, bootstrap=100, swapped=False)


class OneChampion:
    """A registry that holds at most one version."""

    def __init__(self, champion: RegisteredModel | None = None) -> None:
        self.champion = champion

    def by_alias(self, name, alias):
        assert (name, alias) == ("fovea", "champion")
        return self.champion

    def by_sha256(self, name, model_sha256):
        raise AssertionError("the gate looks a version up by alias only")

    def register(self, name, storage_uri, model_sha256, tags):
        raise AssertionError("the gate registers nothing")

    def set_alias(self, name, alias, version):
        raise AssertionError("the gate moves no alias")


def version_of(model, **tags):
    return RegisteredModel("fovea", 3, str(model), payload_sha256(model), ("champion",), tags)


@pytest.fixture(scope="module")
def evaluations(random_models, heldout, tmp_path_factory):
    """Real evaluations of both random models."""
    directory = tmp_path_factory.mktemp("evaluations")
    for name, model in zip("01", random_models, strict=True):
        context = StepContext(state_dir=directory / f"state-{name}")
        evaluate(EVALUATION, model=model, heldout=heldout, evaluation=directory / name, context=context)
    return directory / "0", directory / "1"


@pytest.fixture
def judged(random_models, heldout, evaluations, tmp_path):
    """Run the gate on the first model; gives the result and the verdict."""

    def run_gate(champion, config=CONFIG, evaluation=evaluations[0], model=random_models[0], rows=heldout):
        context = StepContext(state_dir=tmp_path / "state", registry=OneChampion(champion))
        result = run(
            config, model=model, heldout=rows, evaluation=evaluation, verdict=tmp_path / "verdict", context=context
        )
        return result, json.loads((tmp_path / "verdict" / "verdict.json").read_text())

    return run_gate


def write_answers(directory, model, heldout, answer_of):
    """An evaluation directory whose answers are ``answer_of(row)``."""
    rows = list(open_dataset(heldout).rows())
    directory.mkdir()
    origin = origin_of(model, heldout, EVALUATION.max_new_tokens, EVALUATION.precision)
    write_predictions(directory, rows, [answer_of(row) for row in rows], [None] * len(rows), origin)
    return directory


def recorded_champion(model, heldout, directory):
    return version_of(model, heldout_sha256=payload_sha256(heldout), predictions_uri=str(directory / PREDICTIONS))


def truth(row):
    return row["answers"][0]


def forbid_generation(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("no model may be run here")

    monkeypatch.setattr(answering, "load_network", fail)


def test_without_a_champion_the_challenger_passes(judged, random_models):
    result, verdict = judged(None)
    assert result.values == {"passed": True}
    assert verdict["passed"] is True
    assert verdict["champion"] is None
    assert verdict["challenger"]["model_sha256"] == payload_sha256(random_models[0])
    (criterion,) = verdict["criteria"]
    assert set(criterion) == {"name", "value", "low", "high", "threshold", "passed", "reason"}
    assert (criterion["value"], criterion["threshold"], criterion["passed"]) == (None, -0.02, True)
    assert "no champion" in criterion["reason"]


def test_a_challenger_that_is_the_champion_passes_without_a_comparison(judged, random_models, monkeypatch):
    forbid_generation(monkeypatch)
    result, verdict = judged(version_of(random_models[0]))
    assert result.values["passed"] is True
    assert result.numbers["difference"] == 0.0
    assert verdict["criteria"][0]["low"] == verdict["criteria"][0]["high"] == 0.0
    assert verdict["champion"] == {"version": 3, "model_sha256": payload_sha256(random_models[0])}


def test_a_challenger_worse_than_the_champion_fails(judged, random_models, heldout, tmp_path, monkeypatch):
    forbid_generation(monkeypatch)
    recorded = write_answers(tmp_path / "recorded", random_models[1], heldout, truth)
    result, verdict = judged(recorded_champion(random_models[1], heldout, recorded))
    assert result.values == {"passed": False}
    (criterion,) = verdict["criteria"]
    assert criterion["value"] < -0.5
    assert criterion["low"] <= criterion["value"] <= criterion["high"]
    assert "not above -0.0200" in criterion["reason"]
    assert set(verdict["families"]) == {"transcribe", "read", "count", "maximum", "locate"}
    assert result.numbers["passed"] == 0.0


def test_a_challenger_better_than_the_champion_passes(judged, random_models, heldout, tmp_path):
    ours = write_answers(tmp_path / "ours", random_models[0], heldout, truth)
    theirs = write_answers(tmp_path / "theirs", random_models[1], heldout, lambda row: "?")
    result, verdict = judged(recorded_champion(random_models[1], heldout, theirs), evaluation=ours)
    assert result.values == {"passed": True}
    assert result.numbers["difference"] == 1.0
    assert {family["value"] for family in verdict["families"].values()} == {1.0}


def test_the_margin_decides_between_equals(judged, random_models, heldout, tmp_path):
    # One row of twenty is lost: the lower bound is about -0.15.
    ours = write_answers(
        tmp_path / "ours",
        random_models[0],
        heldout,
        lambda row: "?" if row["id"].endswith("count-000000") else truth(row),
    )
    theirs = write_answers(tmp_path / "theirs", random_models[1], heldout, truth)
    champion = recorded_champion(random_models[1], heldout, theirs)
    strict, wide = (CONFIG.model_copy(update={"margin": margin}) for margin in (0.02, 0.3))
    result, verdict = judged(champion, strict, evaluation=ours)
    assert result.values["passed"] is False
    assert verdict["criteria"][0]["value"] == pytest.approx(-1 / 20)
    assert verdict["families"]["count"]["value"] == pytest.approx(-1 / 4)
    assert judged(champion, wide, evaluation=ours)[0].values["passed"] is True


def test_a_lower_bound_exactly_at_the_margin_does_not_pass(random_models):
    champion = version_of(random_models[0])
    assert judge(Interval(0.0, -0.02, 0.02), 0.02, champion).passed is False
    assert judge(Interval(0.0, math.nextafter(-0.02, 0.0), 0.02), 0.02, champion).passed is True
    assert judge(Interval(0.0, 0.0, 0.0), 0.0, champion).passed is False


def test_a_champion_without_recorded_answers_answers_the_same_rows_itself(judged, random_models, evaluations):
    _, verdict = judged(version_of(random_models[1]))
    ours, theirs = (read_predictions(directory) for directory in evaluations)
    assert ours.answers != theirs.answers
    assert verdict["criteria"][0]["value"] is not None
    assert verdict["champion"]["model_sha256"] == theirs.origin.model_sha256


def test_fresh_answers_are_those_of_the_champion_s_own_evaluation(
    random_models, heldout, heldout_rows, evaluations, context
):
    asked = read_predictions(evaluations[0]).origin
    fresh = champion_answers(CONFIG, version_of(random_models[1]), heldout_rows, asked, context)
    assert fresh == read_predictions(evaluations[1]).answers


@pytest.mark.parametrize(
    "spoil",
    [
        lambda origin: Origin("0" * 64, origin.heldout_sha256, origin.max_new_tokens, origin.precision),
        lambda origin: Origin(origin.model_sha256, "0" * 64, origin.max_new_tokens, origin.precision),
        lambda origin: Origin(origin.model_sha256, origin.heldout_sha256, 99, origin.precision),
        lambda origin: Origin(origin.model_sha256, origin.heldout_sha256, origin.max_new_tokens, "bfloat16"),
        lambda origin: None,
    ],
)
def test_recorded_answers_to_another_question_are_not_used(
    spoil, random_models, heldout, heldout_rows, evaluations, tmp_path, context
):
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    origin = spoil(read_predictions(evaluations[1]).origin)
    if origin is not None:
        write_predictions(recorded, heldout_rows, ["spoilt"] * len(heldout_rows), [None] * len(heldout_rows), origin)
    champion = recorded_champion(random_models[1], heldout, recorded)
    answers = champion_answers(CONFIG, champion, heldout_rows, read_predictions(evaluations[0]).origin, context)
    assert answers == read_predictions(evaluations[1]).answers


def test_recorded_answers_are_used_only_when_tag_and_rows_agree(
    random_models, heldout, heldout_rows, evaluations, tmp_path, context
):
    asked, theirs = (read_predictions(directory) for directory in evaluations)
    champion = recorded_champion(random_models[1], heldout, tmp_path)

    def answers_of(version, rows):
        write_predictions(tmp_path, rows, ["recorded"] * len(rows), [None] * len(rows), theirs.origin)
        return champion_answers(CONFIG, version, heldout_rows, asked.origin, context)

    assert set(answers_of(champion, heldout_rows)) == {"recorded"}
    assert answers_of(champion, heldout_rows[::-1]) == theirs.answers
    retagged = version_of(random_models[1], **(champion.tags | {"heldout_sha256": "0" * 64}))
    assert answers_of(retagged, heldout_rows) == theirs.answers


def test_a_champion_whose_directory_is_gone_is_named_with_the_way_out(judged, random_models, tmp_path):
    gone = RegisteredModel("fovea", 3, str(tmp_path / "gone"), "0" * 64)
    with pytest.raises(InputError, match=r"champion fovea version 3: no such directory .*gone.*`fovea rollback`"):
        judged(gone)
    assert not (tmp_path / "verdict").exists()


def test_a_champion_whose_files_were_changed_is_named(judged, random_models, tmp_path):
    changed = RegisteredModel("fovea", 3, str(random_models[1]), "0" * 64)
    with pytest.raises(InputError, match=r"champion fovea version 3: .* was changed; .*`fovea promote`"):
        judged(changed)


def test_answers_of_another_model_or_of_other_rows_are_refused(judged, random_models, heldout_rows, tmp_path):
    with pytest.raises(InputError, match="another model or another held-out dataset"):
        judged(None, model=random_models[1])
    write_dataset(tmp_path / "fewer", heldout_rows[:-1])
    with pytest.raises(InputError, match="another model or another held-out dataset"):
        judged(None, rows=tmp_path / "fewer")


def test_missing_inputs_are_named(judged, tmp_path):
    with pytest.raises(InputError, match=r"predictions\.parquet: no such file"):
        judged(None, evaluation=tmp_path)
    with pytest.raises(InputError, match="absent: no such model directory"):
        judged(None, model=tmp_path / "absent")


def test_the_same_comparison_gives_the_same_verdict_bytes(judged, random_models, heldout, tmp_path):
    recorded = write_answers(tmp_path / "recorded", random_models[1], heldout, truth)
    champion = recorded_champion(random_models[1], heldout, recorded)
    judged(champion)
    first = payload_sha256(tmp_path / "verdict")
    judged(champion)
    assert payload_sha256(tmp_path / "verdict") == first


def test_storage_uris_are_paths_or_file_uris():
    assert str(local_path("/models/3")) == "/models/3"
    assert str(local_path("file:///models/a%20b")) == "/models/a b"
    with pytest.raises(InputError, match="s3://bucket/x: not a directory on this machine"):
        local_path("s3://bucket/x")
