"""Two processes learn from rollouts as one does, with copies of the weights and with weights that are divided."""

import json

import pytest
import torch
from safetensors.torch import load_file

from model.training.engine import LONGEST_WAIT
from tests.model.training import policy_on_ranks
from tests.model.training.two_ranks import limited, run_two_ranks

EXACT = [name for name in policy_on_ranks.CASES if not name.endswith("half")]
pytestmark = [pytest.mark.slow, limited, pytest.mark.xdist_group("ranks")]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Where two ranks have learned in every case."""
    return run_two_ranks("policy_on_ranks", tmp_path_factory.mktemp("policy-ranks"))


@pytest.fixture(scope="module")
def found(two_ranks):
    return json.loads((two_ranks / "found.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(network, state, memory) of one process."""
    return policy_on_ranks.learn({}, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("name", EXACT)
def test_two_ranks_give_the_losses_and_the_weights_of_one_process(two_ranks, found, alone, name):
    network, state, _ = alone
    for ours, theirs in zip(state.history, found[name]["history"], strict=True):
        for key in ("reward", "length", "degenerate", "learning", "reward/read", "reward/count"):
            assert theirs.get(key) == ours.get(key), "the same answers"
        assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-5)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-3)
        assert theirs["ratio"] == pytest.approx(ours["ratio"], abs=1e-5)
        for key in (key for key in ours if key.startswith("entropy")):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-5), key
    assert any(record["degenerate"] for record in state.history)
    theirs = load_file(two_ranks / f"{name}.safetensors")
    for parameter_name, parameter in network.named_parameters():
        torch.testing.assert_close(theirs[parameter_name], parameter.detach(), atol=1e-4, rtol=0, msg=parameter_name)


@pytest.mark.parametrize("name", policy_on_ranks.CASES)
def test_ranks_that_were_stopped_go_on_bit_for_bit(found, name):
    """Stopped one step after a checkpoint that lies in the middle of an iteration."""
    assert found[name]["resumed"] == found[name]["history"]
    assert found[name]["same_weights"] and found[name]["same_counts"]


@pytest.mark.parametrize("name", policy_on_ranks.ASKED_TO_STOP)
def test_ranks_of_which_one_was_asked_to_stop_in_a_rollout_stop_together_and_go_on(found, name):
    assert found[name]["said"] == "gspo stopped after step 2 of 6; a checkpoint is written"
    assert found[name]["after_request"] == [found[name]["history"], True]


def test_half_precision_learns_too(found):
    """Its weights are rounded, and so are its answers: only what does not depend on them is the same."""
    for record in found["zero3 half"]["history"]:
        assert record["mismatch"] < 0.1 if record["learning"] else record["grad_norm"] == 0


def test_a_rank_waits_for_one_that_samples_for_hours(two_ranks):
    assert float((two_ranks / "patience").read_text()) == LONGEST_WAIT.total_seconds() > 4 * 3600


@pytest.mark.parametrize("name", policy_on_ranks.ASKED_TO_STOP)
def test_ranks_of_which_the_first_gave_up_sending_weights_stop_together(found, name):
    assert found[name]["without_weights"].startswith("gspo stopped before step 1 of 6")
