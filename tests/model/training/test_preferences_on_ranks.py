"""Two processes train on pairs as one does: the same losses, delta and weights, with divided weights too."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from model.training.engine import LONGEST_WAIT
from tests.model.training import prefer_on_ranks
from tests.model.training.two_ranks import limited, run_two_ranks

pytestmark = [pytest.mark.slow, limited, pytest.mark.xdist_group("preferences_on_ranks")]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Where two ranks have trained every case."""
    return run_two_ranks("prefer_on_ranks", tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def histories(two_ranks):
    return json.loads((two_ranks / "histories.json").read_text())


@pytest.mark.parametrize("name", [name for name in prefer_on_ranks.CASES if name != "zero3 half"])
def test_two_ranks_give_the_losses_and_the_weights_of_one_process(two_ranks, histories, name, tmp_path):
    changes = {key: value for key, value in prefer_on_ranks.CASES[name].items() if key != "zero"}
    network, history = prefer_on_ranks.run(name, changes, tmp_path)
    for ours, theirs in zip(history, histories[name]["history"], strict=True):
        if ours["step"] == 1:
            ours["accuracy"] = theirs["accuracy"]  # rewards that are 0 but for rounding
        assert theirs == pytest.approx(ours, rel=2e-4, abs=2e-5)
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    assert history[-1]["delta"] != 0
    theirs = load_file(two_ranks / f"{name}.safetensors")
    for parameter_name, parameter in network.named_parameters():
        torch.testing.assert_close(theirs[parameter_name], parameter.detach(), atol=2e-4, rtol=0, msg=parameter_name)


@pytest.mark.parametrize("name", prefer_on_ranks.CASES)
def test_stopped_ranks_continue_bit_for_bit(histories, name):
    assert histories[name]["resumed"] == histories[name]["history"]


def test_half_precision_weights_are_their_own_reference(histories):
    """The reference comes from the weights that train, rounded as they are."""
    first, *_, last = histories["zero3 half"]["history"]
    assert first["preference"] == pytest.approx(math.log(2), abs=2e-3)
    assert last["margin"] > 0.1


def test_a_rank_waits_for_one_that_samples_for_hours(two_ranks):
    assert float((two_ranks / "patience").read_text()) == LONGEST_WAIT.total_seconds() > 4 * 3600
