"""``mpo_length``: the two forms differ in one setting, thoughts are counted by family, arms keep their seeds apart."""

import numpy as np
import pytest

from benchmarks import mpo_length
from model.data.errors import InputError
from pipelines.profile import load_profile

ROWS = [{"id": str(n), "task": task, "chosen": ""} for n, task in enumerate(("sum", "count", "sum", "difference"))]


def test_the_two_forms_differ_in_what_divides_and_in_nothing_else():
    constant, own = (mpo_length.profile_for(form) for form in (mpo_length.CONSTANT, mpo_length.OWN))
    assert constant == load_profile("tiny")
    assert constant.mpo.objective.generation_length > 1
    changed = constant.model_dump()
    changed["mpo"]["objective"]["generation_length"] = None
    assert own.model_dump() == changed


def test_a_profile_of_the_published_form_has_nothing_to_compare(monkeypatch):
    published = mpo_length.profile_for(mpo_length.OWN)
    monkeypatch.setattr(mpo_length, "load_profile", lambda _: published)
    with pytest.raises(InputError, match="to compare with"):
        mpo_length.profile_for(mpo_length.CONSTANT)


def test_thoughts_are_counted_by_family():
    answers = ["<think>1 + 1 = 2</think>2", "<think>", "2", "<think>0</think>0"]
    assert mpo_length.thinking(ROWS, answers) == {"sum": 0.5, "difference": 1.0}
    assert mpo_length.thinking(ROWS[1:2], answers[1:2]) == {}


def test_arms_are_compared_seed_by_seed(monkeypatch, tmp_path):
    for name in ("sft/model", "build_preferences/pairs", "collect/heldout"):
        (tmp_path / name).mkdir(parents=True)
    points = {mpo_length.CONSTANT: (3, 4, 4), mpo_length.OWN: (1, 2, 1)}

    def answered(right):
        return mpo_length.Answered((np.arange(4) < right) + 0.0, {"sum": right / 4}, {"loss": [1.0, 0.5]})

    monkeypatch.setattr(mpo_length, "rows_of", lambda *_: ROWS)
    monkeypatch.setattr(mpo_length, "open_dataset", lambda _: type("Pairs", (), {"rows": lambda self: iter(ROWS)})())
    monkeypatch.setattr(mpo_length, "answer", lambda *_: answered(2))
    monkeypatch.setattr(mpo_length, "train", lambda job: answered(points[job.divided_by][job.seed]))
    measured = mpo_length.measure(False, tmp_path)
    arms = measured.details["arms"]
    assert arms[mpo_length.CONSTANT]["by_seed"] == [0.75, 1.0, 1.0]
    assert arms[mpo_length.OWN]["by_seed"] == [0.25, 0.5, 0.25]
    assert measured.details["over_own"]["mean"] == pytest.approx(7 / 12, abs=1e-4)
    assert measured.details["thoughts"][mpo_length.OWN] == [{"sum": 0.25}, {"sum": 0.5}, {"sum": 0.25}]
    assert measured.details["thoughts"]["chosen"] == {"sum": 0.0, "difference": 0.0}


def test_without_a_demo_it_says_so(tmp_path):
    with pytest.raises(InputError, match="make demo"):
        mpo_length.measure(True, tmp_path)
