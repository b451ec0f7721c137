"""The benchmark of whole iterations: TRL's trainer and ours learn the same from the same answers."""

import pytest

from benchmarks import gspo_iteration
from model.data.shards import open_dataset
from model.training.policy_config import RolloutConfig


def test_random_answers_differ_in_their_reward():
    assert gspo_iteration.reward([2, 4, 5, 7]) == 50
    assert gspo_iteration.reward([0, 2]) == 100


@pytest.mark.slow
def test_both_sides_learn_the_same_from_the_same_answers(tmp_path, monkeypatch):
    plan = RolloutConfig(prompts=2, responses=4, max_new_tokens=6)
    monkeypatch.setattr(gspo_iteration, "ROLLOUT", plan)
    monkeypatch.setattr(gspo_iteration, "ANSWERS", 8)
    gspo_iteration.prepare(1, tmp_path)
    config = gspo_iteration.settings(1, precision="float32", threads=1)
    rows = list(open_dataset(tmp_path / "rows").rows())
    (theirs,) = gspo_iteration.train_peer(tmp_path / "model", rows, config)
    answers, advantages = theirs["rollout"]
    assert all(len(answer) == 6 for answer in answers), "neither side may end an answer"
    (ours,) = gspo_iteration.train_ours(tmp_path / "model", rows, config, answers)
    assert ours["advantages"] == pytest.approx(advantages, abs=1e-4)
    assert any(ours["advantages"]) and ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    (free,) = gspo_iteration.train_ours(tmp_path / "model", rows, config, None)
    assert free["length"] == 6 and free["mismatch"] < 1e-4
