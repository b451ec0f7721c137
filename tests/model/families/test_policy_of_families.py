"""Online reinforcement learning of every family: the gradient of a step, and a whole iteration with its own answers."""

from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.families.interface import Sample
from model.training.attention import use_varlen_attention
from model.training.batches import pad
from model.training.policy import policy_stage
from tests.model.families.test_trees_of_answers import by_itself
from tests.model.training.policy_runs import OBJECTIVE, Recited, babble, even_share, rollout, run, training
from tests.tiny import picture, question_row
from tests.tiny_internvl import ARCHITECTURES, random_architecture
from tests.tiny_qwen import GENERATIONS, mixed_row

PLAN = rollout(prompts=3, responses=3, kept_together=3)
SETTINGS = training(steps=1, batch_size=9, micro_batch_size=9)


def internvl_rows():
    """Several tiles, two images, text alone."""
    rng = np.random.default_rng(0)
    images = [[picture(rng, 2, 2)], [picture(rng), picture(rng, 1, 2)], []]
    return [question_row(f"row-{i}", given, "a") for i, given in enumerate(images)]


def qwen_rows():
    """A clip between images, a clip, text alone."""
    rng = np.random.default_rng(0)
    return [mixed_row(f"row-{i}", rng, kinds, "a") for i, kinds in enumerate(("ivi", "v", ""))]


def first_step(network, processor, rows, directory):
    """(stage, batch of its first step, groups by row)."""
    engine = Recited(babble)
    stage, _ = policy_stage(
        "gspo", network, engine, even_share, directory, training=SETTINGS, objective=OBJECTIVE, rollout=PLAN
    )
    source = stage.source(rows, processor, SETTINGS, ranks=1, rank=0, blank=False)
    source.prepare(SimpleNamespace(device=torch.device("cpu")))
    (reading,) = source.read(0, 1)
    (batch,) = reading.batches
    return stage, batch, engine.asked[0]


def gradients(network):
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found


def advantages(rewards):
    rewards = np.array(rewards)
    return (rewards - rewards.mean()) / rewards.std(ddof=1) if np.ptp(rewards) > 1e-6 else np.zeros(len(rewards))


def assert_gradient_is_the_published_one(network, processor, rows, directory, monkeypatch):
    """GSPO, equation 10 at the ratio 1: each token of y_i adds A_i / |y_i| of the gradient of its log-probability, over
    the number of answers. Every answer is computed by itself, behind a prompt of its own."""
    hidden = network.hidden
    # What keeps a mixture's experts busy is no part of the objective.
    monkeypatch.setattr(network, "hidden", lambda inputs: hidden(inputs)._replace(auxiliary=None), raising=False)
    stage, batch, asked = first_step(network, processor, rows, directory)
    with use_varlen_attention(*network.parts().language):
        stage.loss(network, batch, float(batch.weights.sum())).backward()
    found = gradients(network)
    by_id = {row["id"]: row for row in rows}
    weights, answers = [], []
    for row_id in asked:
        group = [babble(row_id, number) for number in range(3)]
        rewards = [np.mean([token % 2 == 0 for token in answer]) for answer in group]
        weights += [a / len(answer) for a, answer in zip(advantages(rewards), group, strict=True) for _ in answer]
        trunk: Sample = processor.question(by_id[row_id])
        answers += [by_itself(trunk, answer) for answer in group]
    separate = pad(answers, "token", processor.eos_token_id)
    logits = network.head(network.hidden(separate.inputs).states)
    log_p = logits.log_softmax(-1).gather(1, separate.targets[:, None])[:, 0]
    (-(log_p * torch.tensor(weights, dtype=torch.float32)).sum() / 9).backward()
    expected = gradients(network)
    assert expected.keys() == found.keys() and any(float(g.abs().max()) > 1e-3 for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def assert_an_iteration_trains(network, processor, rows, directory):
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    config = training(steps=2, batch_size=6, micro_batch_size=6, learning_rate=1e-4)
    plan = rollout(prompts=3, responses=4, kept_together=3)
    _, state, _ = run(directory, config=config, plan=plan, rows=rows, network=network, processor=processor)
    learned = [record for record in state.history if record["learning"]]
    assert learned and all(record["mismatch"] < 1e-4 for record in learned)
    assert all(torch.isfinite(p).all() for p in network.parameters())
    assert all(not torch.equal(p, before[name]) for name, p in network.named_parameters() if "norm" in name)


_QUICK = ("30b, Qwen3 mixture", "qwen3_vl")
"""The others take as long each: they come after the quick tests."""


def _named(names):
    return [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", _named(ARCHITECTURES))
def test_internvl_learns_from_its_answers(name, tmp_path, monkeypatch):
    network, processor = random_architecture(name)
    with monkeypatch.context() as patches:
        assert_gradient_is_the_published_one(network, processor, internvl_rows(), tmp_path / "one", patches)
    assert_an_iteration_trains(network, processor, internvl_rows(), tmp_path / "two")


@pytest.mark.parametrize("qwen", _named(GENERATIONS), indirect=True)
def test_a_qwen_vl_learns_from_its_answers(qwen, tmp_path, monkeypatch):
    network = deepcopy(qwen.network)
    with monkeypatch.context() as patches:
        assert_gradient_is_the_published_one(network, qwen.processor, qwen_rows(), tmp_path / "one", patches)
    assert_an_iteration_trains(network, qwen.processor, qwen_rows(), tmp_path / "two")


def test_a_mixture_of_experts_is_kept_busy(tmp_path):
    network, processor = random_architecture("30b, Qwen3 mixture")
    network.config.text_config.router_aux_loss_coef = 0.5
    network.train()
    stage, batch, _ = first_step(network, processor, internvl_rows(), tmp_path)
    with use_varlen_attention(*network.parts().language):
        auxiliary = network.hidden(batch.inputs).auxiliary.item()
        loss = stage.loss(network, batch, float(batch.weights.sum())).item()
        half = stage.loss(network, batch, 2 * float(batch.weights.sum())).item()
    assert auxiliary > 0
    # At the ratio 1 the objective is the mean advantage, which is 0.
    assert loss == pytest.approx(auxiliary, rel=1e-4, abs=1e-6)
    assert half == pytest.approx(auxiliary / 2, rel=1e-4, abs=1e-6)
