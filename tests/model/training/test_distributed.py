"""Several processes train as one does: data parallelism and ZeRO, mixed media, resume on another number of ranks."""

import json

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from model.data.errors import InputError
from model.training.config import TrainingConfig, ZeroConfig
from model.training.loop import supervised_stage, train
from tests.model.training import train_on_ranks
from tests.model.training.two_ranks import limited, run_two_ranks
from tests.tiny import random_model


def on_ranks(test):
    """Two processes for a minute: after the quick tests, once, in one worker."""
    return pytest.mark.slow(limited(pytest.mark.xdist_group("ranks")(test)))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Where two ranks have trained every case."""
    return run_two_ranks("train_on_ranks", tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def histories(two_ranks):
    return json.loads((two_ranks / "histories.json").read_text())


@pytest.mark.parametrize("name", [name for name in train_on_ranks.CASES if name != "zero2 half"])
@on_ranks
def test_two_ranks_give_the_losses_and_the_weights_of_one_process(two_ranks, histories, name, tmp_path):
    """One rank sees text only and the other images; their losses need unequally many chunks of the head."""
    changes = {key: value for key, value in train_on_ranks.CASES[name].items() if key != "zero"}
    network, state = train_on_ranks.run(name, changes, tmp_path)
    for ours, theirs in zip(state.history, histories[name]["history"], strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4)
        assert theirs["tokens"] == ours["tokens"]
    theirs = load_file(two_ranks / f"{name}.safetensors")
    for parameter_name, parameter in network.named_parameters():
        torch.testing.assert_close(theirs[parameter_name], parameter.detach(), atol=1e-4, rtol=0, msg=parameter_name)


@on_ranks
def test_every_rank_names_the_row_whose_loss_is_not_finite(two_ranks):
    """One of them is shown, whichever ends first."""
    said = {(two_ranks / f"refused-{rank}").read_text() for rank in range(2)}
    assert said == {"sft: loss is nan at step 1; rows r2"}


@pytest.mark.parametrize("name", train_on_ranks.CASES)
@on_ranks
def test_stopped_ranks_continue_bit_for_bit(histories, name):
    assert histories[name]["resumed"] == histories[name]["history"]
    assert histories[name]["same_weights"]


@on_ranks
def test_half_precision_weights_have_masters_that_learn(histories):
    losses = [record["loss"] for record in histories["zero2 half"]["history"]]
    exact = [record["loss"] for record in histories["zero2"]["history"]]
    assert losses == pytest.approx(exact, rel=0.02)
    assert losses != exact


@pytest.mark.parametrize("name", ["zero3", "zero3 packs"])
@on_ranks
def test_one_process_takes_up_what_two_have_begun(two_ranks, histories, name):
    changes = {key: value for key, value in train_on_ranks.CASES[name].items() if key != "zero"}
    _, state = train_on_ranks.run(name, changes, two_ranks / "begun" / name)
    expected = [record["loss"] for record in histories[name]["history"]]
    assert [record["loss"] for record in state.history] == pytest.approx(expected, rel=1e-5)
    assert state.history[:2] == histories[name]["history"][:2], "steps 1 and 2 were the ranks' own"


def test_zero_alone_is_refused():
    with pytest.raises(ValidationError, match=r"zero: divides states among processes; processes must be above 1"):
        TrainingConfig(learning_rate=1e-3, steps=1, batch_size=2, zero=ZeroConfig(stage=3, offload="all"))


def test_a_batch_that_ranks_cannot_share_is_refused(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match=r"batch_size 4 is not a multiple of 3 processes"):
        train_on_ranks.run("sft", {}, tmp_path)


def test_missing_processes_are_refused(tokenizer, tmp_path):
    network, processor = random_model(tokenizer)
    config = TrainingConfig(learning_rate=1e-3, steps=1, batch_size=2, processes=2)
    with pytest.raises(InputError, match=r"training\.processes is 2, but 1 processes were started"):
        train(network, processor, train_on_ranks.rows(), supervised_stage("sft", config), config, tmp_path, print)
