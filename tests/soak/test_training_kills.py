"""Thirty kills of a training, at random moments, with three seeds of them."""

import pytest

from tests.model.training.test_kills import kill_training

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_thirty_kills_change_no_bit(tmp_path, seed):
    found = kill_training(tmp_path, kills=30, seed=seed)
    assert found["kills"] == 30
    assert found["same_history"]
    assert found["same_weights"]
