"""A run of rollouts that ends in any phase goes on as it was; what is stored for that, and for how long."""

import os
import signal

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from model.data.errors import InputError
from model.flash.build import build_model
from model.training import rollout as rollouts
from model.training.policy_source import RolloutSource
from model.training.policy_store import Group, RolloutStore
from model.training.rollout import NetworkSampler
from model.training.stopping import Stopped
from tests.model.training.policy_runs import Recited, babble, even_share, rollout, run, training
from tests.tiny import byte_tokenizer, tiny_config


class Killed(BaseException):
    """Stands for the end of a process."""


class Dying:
    """A function that ends the process when it is called for the ``at``-th time (from 0)."""

    def __init__(self, call, at):
        self.call, self.left = call, at

    def __call__(self, *given):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return self.call(*given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(network, state, memory) of a run that nobody disturbed: three iterations of two steps."""
    return run(tmp_path_factory.mktemp("whole"), config=training(steps=6))


def dying_run(state_dir, config, phase, at):
    """A run that ends in a phase of an iteration."""
    network, processor = build_model(tiny_config(), byte_tokenizer(), seed=0)
    engine, functions = NetworkSampler(network, processor), {"reward": even_share, "log": lambda _record: None}
    if phase == "rollout":
        engine.sample = Dying(engine.sample, at)
    else:
        functions[phase] = Dying(functions[phase], at)
    with pytest.raises(Killed):
        run(state_dir, config=config, network=network, processor=processor, engine=engine, **functions)


@pytest.mark.parametrize(
    ("phase", "at", "checkpoint_every"),
    [
        ("rollout", 3, 1),
        ("reward", 2, 3),
        ("log", 3, 3),
        pytest.param("rollout", 3, 3, marks=pytest.mark.slow),
        pytest.param("reward", 2, 1, marks=pytest.mark.slow),
        pytest.param("log", 2, 1, marks=pytest.mark.slow),
        pytest.param("log", 2, 3, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_ended_in_any_phase_goes_on_bit_for_bit(tmp_path, whole, phase, at, checkpoint_every):
    """``log`` is called between an update and its checkpoint."""
    config = training(steps=6, checkpoint_every=checkpoint_every)
    dying_run(tmp_path, config, phase, at)
    network, state, memory = run(tmp_path, config=config)
    assert state.history == whole[1].history
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), whole[0].parameters(), strict=True))
    assert memory.state() == whole[2].state(), "no answer is counted twice, none is lost"


class Asking:
    """A function during whose ``at``-th call (from 0) the process is asked to stop; it counts its calls."""

    def __init__(self, call, at):
        self.call, self.at, self.calls = call, at, 0

    def __call__(self, *given):
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        self.calls += 1
        return self.call(*given)


@pytest.mark.parametrize(
    ("at", "where", "checkpoints"),
    [(1, "before step 1 of 6", []), (20, "after step 2 of 6; a checkpoint is written", ["checkpoint-00000002"])],
)
def test_sigterm_ends_a_rollout_before_its_next_token(tmp_path, whole, monkeypatch, at, where, checkpoints):
    """A part is at most six tokens long, an iteration two parts: token 20 is one of the second iteration."""
    draw = Asking(rollouts.draw, at)
    monkeypatch.setattr(rollouts, "draw", draw)
    with pytest.raises(Stopped, match=f"gspo stopped {where}$"):
        run(tmp_path, config=training(steps=6))
    assert draw.calls == at + 1
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == checkpoints
    monkeypatch.undo()
    network, state, memory = run(tmp_path, config=training(steps=6))
    assert state.history == whole[1].history
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), whole[0].parameters(), strict=True))
    assert memory.state() == whole[2].state(), "no answer is counted twice, none is lost"


def test_sigterm_to_an_engine_that_does_not_look_ends_the_rollout_with_its_part(tmp_path):
    first = Recited(babble)
    first.sample = Asking(first.sample, 2)
    with pytest.raises(Stopped, match="after step 2 of 4"):
        run(tmp_path, engine=first)
    assert first.sample.calls == 3, "the third of four queries"
    second = Recited(babble)
    run(tmp_path, engine=second)
    assert len(second.asked) == 1, "what was answered is stored"


def test_sigterm_ends_the_pass_before_the_first_update(tmp_path, monkeypatch):
    """Three steps an iteration, so that the pass has two to measure."""
    config, plan = training(steps=3), rollout(prompts=3)
    expected = run(tmp_path / "whole", config=config, plan=plan, engine=Recited(babble))[1].history
    measure = RolloutSource._log_probabilities
    asking = Asking(measure, 0)
    monkeypatch.setattr(RolloutSource, "_log_probabilities", lambda *given: asking(*given))
    with pytest.raises(Stopped, match="before step 1 of 3"):
        run(tmp_path / "asked", config=config, plan=plan, engine=Recited(babble))
    assert asking.calls == 1
    monkeypatch.undo()
    again = Recited(babble)
    assert run(tmp_path / "asked", config=config, plan=plan, engine=again)[1].history == expected
    assert again.asked == []


def test_stored_answers_are_not_sampled_again(tmp_path):
    first = Recited(babble)
    with pytest.raises(Killed):
        run(tmp_path, engine=first, reward=Dying(even_share, 3))
    assert [len(asked) for asked in first.asked] == [1] * 4, "the fourth query was answered, and not yet judged"
    second = Recited(babble)
    run(tmp_path, engine=second)
    assert second.asked == first.asked[3:]


def test_only_rollouts_that_a_checkpoint_may_need_are_kept(tmp_path):
    seen = []

    def watched(answers):
        seen.append(sorted(folder.name for folder in (tmp_path / "rollouts").glob("*")))
        return even_share(answers)

    run(tmp_path, config=training(steps=8, checkpoint_every=3), engine=Recited(babble), reward=watched)
    # Of two steps each. Before step 4, in the third, the checkpoint is of step 3, in the second.
    assert seen[::2] == [[], ["000000"], ["000001"], []]


def test_a_checkpoint_whose_rollouts_are_gone_is_refused(tmp_path):
    config = training(checkpoint_every=1)
    with pytest.raises(Killed):
        run(tmp_path, config=config, engine=Recited(babble), log=Dying(lambda _record: None, 1))
    RolloutStore(tmp_path / "rollouts").drop_before(99)
    with pytest.raises(InputError, match="the rollouts of iteration 0 are gone; start over"):
        run(tmp_path, config=config, engine=Recited(babble))


def test_a_damaged_file_of_rollouts_is_named(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, engine=Recited(babble), log=Dying(lambda _record: None, 1))
    path = tmp_path / "rollouts" / "000000" / "answers-00001.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"answers-00001\.safetensors: damaged"):
        run(tmp_path, engine=Recited(babble))


def test_files_of_something_else_are_named(tmp_path):
    store, folder = RolloutStore(tmp_path), tmp_path / "000002"
    folder.mkdir()
    for name, load in (("answers-00000", store.load), ("old", store.load_old)):
        save_file({"other": np.zeros(1)}, folder / f"{name}.safetensors")
        with pytest.raises(InputError, match=rf"{name}\.safetensors: damaged"):
            load(2)


def test_groups_come_back_from_the_disk_as_they_were(tmp_path):
    store = RolloutStore(tmp_path)
    answers = [np.array([0, 7, 151_000]), np.array([], np.int64), np.array([3])]
    sampler = [np.array([-0.1, -1e-9, -20.0], np.float32), np.array([], np.float32), np.array([-2.5], np.float32)]
    values = [np.array([1.0, np.nan, 0.1]), np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])]
    group = Group(3, 11, answers, sampler, *values, np.array([True, False, False]), ["", "row r: hung", ""])
    single = Group(5, 0, answers[:1], sampler[:1], *(v[:1] for v in values), np.array([False]), [""])
    store.save(4, [group, single])
    store.save(4, [Group(6, *list(vars(single).values())[1:])])
    found = store.load(4)
    assert sorted(found) == [3, 5, 6]
    for name, value in vars(group).items():
        np.testing.assert_equal(getattr(found[3], name), value)
    np.testing.assert_equal(vars(found[5]), vars(single))
    assert store.load(5) == {}
