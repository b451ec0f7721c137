"""Answers that share a prompt in one pack against each answer behind a prompt of its own, for every family."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.families.interface import Sample
from model.training.attention import use_varlen_attention
from model.training.batches import pad
from model.training.trees import Tree, tree_batch
from tests.tiny import picture, question_row
from tests.tiny_internvl import ARCHITECTURES, random_architecture
from tests.tiny_qwen import mixed_row

# The first trunk has an answer that never was, one that ended at once, and a long one; the last has a single answer.
BRANCHES = [[[7, 8, 9], [], [5], [4] * 11], [[3, 2]], [[9, 9, 1, 6]]]


def by_itself(trunk: Sample, branch: list[int]) -> Sample:
    """The question with one answer behind it, as a sample of supervised training."""
    positions = trunk.positions
    if positions is not None:
        after = positions.max() + 1 + np.arange(len(branch))
        positions = np.concatenate([positions, np.broadcast_to(after, (3, len(branch)))], axis=1)
    trained = [False] * len(trunk.input_ids) + [True] * len(branch)
    return replace(trunk, input_ids=[*trunk.input_ids, *branch], trained=trained, positions=positions)


def assert_trees_are_their_answers(network, trunks, pad_id):
    """The same states before every answer token, and the same gradient of every parameter."""
    trees = [Tree(trunk, branches) for trunk, branches in zip(trunks, BRANCHES, strict=True)]
    answers = [by_itself(tree.trunk, branch) for tree in trees for branch in tree.branches if branch]
    separate = pad(answers, "token", pad_id)
    together = tree_batch(trees, [1.0] * 6, {})
    assert together.tokens < separate.tokens and together.units < separate.units
    assert torch.equal(together.targets, separate.targets)

    def states_and_gradients(batch):
        network.zero_grad()
        states = network.hidden(batch.inputs).states
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
        return states.detach(), [p.grad.clone() for p in network.parameters() if p.grad is not None]

    expected, expected_gradients = states_and_gradients(separate)
    with use_varlen_attention(*network.parts().language):
        found, gradients = states_and_gradients(together)
    network.zero_grad()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_branches_of_internvl_are_answers_of_their_own(name):
    rng = np.random.default_rng(0)
    network, processor = random_architecture(name)
    images = [[picture(rng, 2, 1)], [picture(rng), picture(rng, 1, 2)], []]
    rows = [question_row(f"row-{i}", given, "a") for i, given in enumerate(images)]
    trunks = [processor.question(row) for row in rows]
    assert_trees_are_their_answers(network, trunks, processor.eos_token_id)


def test_branches_of_a_qwen_vl_are_answers_of_their_own(qwen):
    rng = np.random.default_rng(0)
    # A clip lasts longer than it is wide, so the answer's positions do not follow from the number of tokens.
    trunks = [
        qwen.processor.question(mixed_row(f"row-{i}", rng, kinds, "a")) for i, kinds in enumerate(("ivi", "v", ""))
    ]
    assert_trees_are_their_answers(qwen.network, trunks, 0)


def test_a_tree_needs_a_weight_for_every_branch():
    trunk = Sample("row", [1, 2], [False] * 2, {}, 0)
    with pytest.raises(ValueError, match="1 weights for 2 branches"):
        tree_batch([Tree(trunk, [[1], [2]])], [1.0], {})
