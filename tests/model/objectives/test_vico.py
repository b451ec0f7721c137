"""Consistency: chunk by chunk, against torch's divergence of whole tensors."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model.objectives.next_token import sample_weight, token_weight
from model.objectives.vico import consistency_loss, consistency_scores, divergences

HIDDEN, REFERENCE_HIDDEN, VOCABULARY = 6, 5, 11


class CountingHead(nn.Linear):
    """An output head that remembers how many positions it was given in each call."""

    def __init__(self, width):
        super().__init__(width, VOCABULARY)
        self.rows = []

    def forward(self, states):
        self.rows.append(len(states))
        return super().forward(states)


def example(positions, seed=0):
    torch.manual_seed(seed)
    policy, reference = CountingHead(HIDDEN), CountingHead(REFERENCE_HIDDEN)
    states = torch.randn(positions, HIDDEN, requires_grad=True)
    fixed = torch.randn(positions, REFERENCE_HIDDEN, requires_grad=True)
    return states, policy, fixed, reference, torch.randint(0, VOCABULARY, (positions,))


def whole(states, head, fixed, reference_head):
    """torch's own divergence of whole distributions."""
    target = torch.distributions.Categorical(logits=reference_head(fixed.detach()).detach(), validate_args=False)
    policy = torch.distributions.Categorical(logits=head(states), validate_args=False)  # refuses none of none
    return torch.distributions.kl_divergence(target, policy)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 20), st.integers(1, 25), st.integers(0, 3), st.integers(0, 1000))
def test_chunks_give_the_values_and_the_gradients_of_the_whole(positions, chunk, spare, seed):
    states, head, fixed, reference_head, targets = example(positions, seed)
    upstream = torch.randn(positions)
    expected = whole(states, head, fixed, reference_head)
    wanted = (states, head.weight, head.bias)
    expected_gradients = torch.autograd.grad(expected, wanted, upstream)
    head.rows.clear()
    calls = max(1, math.ceil(positions / chunk)) + spare
    found = consistency_scores(states, head, fixed, reference_head, targets, chunk, calls if spare else None)
    assert len(head.rows) == calls and max(head.rows) <= chunk
    torch.testing.assert_close(found.divergences, expected, atol=1e-6, rtol=1e-5)
    likelihoods = -head(states).log_softmax(-1)[torch.arange(positions), targets]
    torch.testing.assert_close(found.likelihoods, likelihoods)
    gradients = torch.autograd.grad(found.divergences, wanted, upstream)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-6, rtol=1e-4)


def test_the_divergence_is_torchs_from_the_reference_to_the_policy_and_not_the_other_way():
    reference, policy = torch.randn(4, VOCABULARY), torch.randn(4, VOCABULARY)
    found = divergences(reference, policy)
    assert torch.allclose(
        found.mean(), F.kl_div(policy.log_softmax(-1), reference.softmax(-1), reduction="batchmean"), atol=1e-6
    )
    assert not torch.allclose(found, divergences(policy, reference), atol=1e-3)
    certain = torch.tensor([[0.0, -100.0]])
    assert divergences(certain, torch.zeros(1, 2)).item() == pytest.approx(math.log(2)), "log 2 in nats"


def test_a_policy_that_is_the_reference_has_no_loss_and_no_gradient():
    states, head, *_ = example(7)
    targets = torch.zeros(7, dtype=torch.long)
    scores = consistency_scores(states, head, states, head, targets, 3)
    assert scores.divergences.abs().max() < 1e-6
    for gradient in torch.autograd.grad(scores.divergences.sum(), (states, head.weight, head.bias)):
        assert gradient.abs().max() < 1e-6


def test_no_gradient_reaches_the_reference():
    states, head, fixed, reference_head, targets = example(5)
    consistency_scores(states, head, fixed, reference_head, targets, 2).divergences.sum().backward()
    assert fixed.grad is None and reference_head.weight.grad is None
    assert states.grad is not None and head.weight.grad is not None


def test_the_gradient_is_that_of_finite_differences(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # differences are too coarse in float32
    torch.manual_seed(0)
    reference = torch.randn(3, VOCABULARY, dtype=torch.double)
    policy = torch.randn(3, VOCABULARY, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda logits: divergences(reference, logits), policy)


def test_the_loss_is_the_mean_over_samples_of_the_mean_over_their_tokens():
    states, head, fixed, reference_head, targets = example(7)
    scores = consistency_scores(states, head, fixed, reference_head, targets, 4)
    lengths = [2, 5]
    weights = torch.cat([torch.full((n,), token_weight(n, "sample")) for n in lengths])
    denominator = sum(sample_weight(n, "sample") for n in lengths)
    parts = [part.mean() for part in scores.divergences.split(lengths)]
    found = consistency_loss(scores, weights, denominator)
    torch.testing.assert_close(found, (parts[0] + parts[1]) / 2)
    with_tokens = consistency_loss(scores, weights, denominator, next_token_weight=0.5)
    tokens = [part.mean() for part in scores.likelihoods.split(lengths)]
    torch.testing.assert_close(with_tokens, found + 0.5 * (tokens[0] + tokens[1]) / 2)


def test_sequences_whose_responses_differ_in_length_are_refused():
    states, head, fixed, reference_head, targets = example(4)
    with pytest.raises(ValueError, match="4 states of the policy, 3 of the reference, 4 response tokens"):
        consistency_scores(states, head, fixed[1:], reference_head, targets, 8)
