"""Log-probabilities taken chunk by chunk, against the whole, TRL's fused head, and torch's own distributions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model.objectives.log_probability import segment_means, segment_sums, token_log_probabilities, token_scores

HIDDEN, VOCABULARY = 6, 11


class CountingHead(nn.Linear):
    """An output head that remembers how many positions it was given in each call."""

    def __init__(self):
        super().__init__(HIDDEN, VOCABULARY)
        self.rows = []

    def forward(self, states):
        self.rows.append(len(states))
        return super().forward(states)


def example(positions, seed=0):
    torch.manual_seed(seed)
    head = CountingHead()
    return torch.randn(positions, HIDDEN, requires_grad=True), head, torch.randint(0, VOCABULARY, (positions,))


def whole(states, head, targets):
    return head(states).log_softmax(-1)[torch.arange(len(targets)), targets]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 20), st.integers(1, 25), st.integers(0, 3), st.booleans(), st.integers(0, 1000))
def test_chunks_give_the_values_and_the_gradients_of_the_whole(positions, chunk, spare, entropies, seed):
    states, head, targets = example(positions, seed)
    upstream = torch.randn(positions)
    expected = whole(states, head, targets)
    expected_gradients = torch.autograd.grad(expected, (states, head.weight, head.bias), upstream)
    head.rows.clear()
    calls = max(1, math.ceil(positions / chunk)) + spare
    function = token_scores if entropies else token_log_probabilities
    found = function(states, head, targets, chunk, calls if spare else None)
    found = found.log_probabilities if entropies else found
    assert len(head.rows) == calls
    assert max(head.rows) <= chunk
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, (states, head.weight, head.bias), upstream), expected_gradients
    )
    assert len(head.rows) == (2 * calls if calls > 1 else 1), "as often in the backward pass; one piece is kept"


def test_values_gradients_and_entropies_are_those_of_the_fused_head_of_trl():
    from trl.kernels import ChunkedLogProbFunction

    states, head, targets = example(17)
    upstream = torch.randn(17)
    given = (1.0, 4, None, 1.0, ("entropy",))  # temperature, vocabulary per tile, no soft cap, no scale
    expected, entropies, *_ = ChunkedLogProbFunction.apply(states, head.weight, head.bias, targets, *given)
    expected_gradients = torch.autograd.grad(expected, (states, head.weight, head.bias), upstream)
    found = token_scores(states, head, targets, 5)
    torch.testing.assert_close(found.log_probabilities, expected)
    torch.testing.assert_close(found.entropies, entropies)
    gradients = torch.autograd.grad(found.log_probabilities, (states, head.weight, head.bias), upstream)
    torch.testing.assert_close(gradients, expected_gradients)


def test_no_tensor_of_positions_by_vocabulary_is_kept_for_the_backward_pass():
    states, head, targets = example(64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        whole(states, head, targets)
        at_once, kept = kept, []
        token_log_probabilities(states, head, targets, 8)
        token_scores(states, head, targets, 8)
    assert max(at_once) == 64 * VOCABULARY
    assert max(kept) <= 64 * HIDDEN


def test_the_entropy_is_that_of_the_distribution_and_has_no_gradient():
    states, head, targets = example(9)
    entropies = token_scores(states, head, targets, 4).entropies
    torch.testing.assert_close(entropies, torch.distributions.Categorical(logits=head(states)).entropy().detach())
    assert not entropies.requires_grad


def test_a_token_that_is_ruled_out_leaves_the_entropy_finite():
    states, head, targets = example(3)
    banned = torch.zeros(VOCABULARY).index_fill(0, torch.tensor([2]), -math.inf)
    entropies = token_scores(states, nn.Sequential(head, _Add(banned)), targets * 0, 2).entropies
    assert torch.isfinite(entropies).all()
    assert (entropies <= math.log(VOCABULARY - 1)).all()


class _Add(nn.Module):
    def __init__(self, other):
        super().__init__()
        self.other = other

    def forward(self, x):
        return x + self.other


def test_the_entropy_is_not_computed_again_in_the_backward_pass(monkeypatch):
    states, head, targets = example(8)
    rows = []
    entr = torch.special.entr
    monkeypatch.setattr(torch.special, "entr", lambda x: rows.append(len(x)) or entr(x))
    token_scores(states, head, targets, 4).log_probabilities.sum().backward()
    assert rows == [4, 4]


def test_token_id_zero_gets_a_gradient():
    states, head, targets = example(5)
    token_log_probabilities(states, head, torch.zeros_like(targets), 2).sum().backward()
    assert (states.grad.abs().sum(-1) > 0).all()
    assert head.bias.grad[0] > 0 > head.bias.grad[1:].max()


def test_a_rank_without_positions_calls_the_head_and_reaches_states_and_head():
    states, head, targets = example(0)
    found = token_log_probabilities(states, head, targets, 4, calls=5)
    found.sum().backward()
    assert found.shape == (0,)
    assert states.grad.shape == (0, HIDDEN)
    assert torch.equal(head.weight.grad, torch.zeros_like(head.weight))
    assert head.rows == [0] * 10


def test_too_few_calls_are_refused():
    with pytest.raises(ValueError, match="2 chunks of 4 do not hold 9 positions"):
        token_log_probabilities(*example(9), 4, calls=2)


def test_a_reference_is_scored_without_a_graph():
    states, head, targets = example(9)
    with torch.no_grad():
        found = token_log_probabilities(states, head, targets, 4)
    assert not found.requires_grad
    torch.testing.assert_close(found, whole(states, head, targets).detach())


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_logits_give_float32(autocast):
    """Under autocast, and with weights in half precision, as DeepSpeed has them."""
    states, head, targets = example(9)
    expected = whole(states, head, targets)
    if not autocast:
        states, head = states.bfloat16(), head.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = token_scores(states, head, targets, 4)
    assert found.log_probabilities.dtype == found.entropies.dtype == torch.float32
    torch.testing.assert_close(found.log_probabilities, expected, rtol=0.05, atol=0.05)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(0, 1000))
def test_segments_are_summed_and_averaged_each_by_itself(lengths, seed):
    values = np.random.default_rng(seed).normal(size=sum(lengths))
    parts = np.split(values, np.cumsum(lengths)[:-1])
    given = torch.from_numpy(values)
    np.testing.assert_allclose(segment_sums(given, lengths), [part.sum() for part in parts], atol=1e-12)
    means = [part.mean() if len(part) else 0.0 for part in parts]
    np.testing.assert_allclose(segment_means(given, lengths), means, atol=1e-12)


def test_a_neighbour_does_not_change_the_last_bit_of_a_sum():
    torch.manual_seed(0)
    values = torch.randn(1000) * torch.logspace(-3, 3, 1000)
    alone = segment_sums(values[371:], [629])
    assert torch.equal(segment_sums(values, [70, 301, 629])[2:], alone)


def test_lengths_that_do_not_add_up_are_refused():
    with pytest.raises(RuntimeError, match="sum exactly"):
        segment_sums(torch.zeros(5), [2, 2])
