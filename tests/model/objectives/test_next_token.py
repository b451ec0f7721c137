"""The next-token loss against its published formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model.objectives.next_token import chunked_next_token_loss, next_token_loss, sample_weight, token_weight


@pytest.mark.parametrize(("averaging", "weight"), [("token", 1.0), ("sample", 1 / 16), ("square", 1 / 4)])
def test_weight_of_a_token_in_a_sample_of_sixteen(averaging, weight):
    assert token_weight(16, averaging) == pytest.approx(weight)


@given(st.integers(1, 5000))
def test_a_sample_weighs_its_square_root(tokens):
    assert sample_weight(tokens, "square") == pytest.approx(math.sqrt(tokens))
    assert sample_weight(tokens, "sample") == pytest.approx(1)
    assert sample_weight(tokens, "token") == tokens


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 1000))
def test_loss_is_the_weighted_sum_over_samples(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(n, 11, generator=generator, dtype=torch.float64) for n in lengths]
    targets = [torch.randint(0, 11, (n,), generator=generator) for n in lengths]
    # The formula, sample by sample: sum_s sum_i w_s * -log p / sum_s N_s w_s.
    above = sum(
        -(logits[s].log_softmax(-1)[i, targets[s][i]]) / math.sqrt(n) for s, n in enumerate(lengths) for i in range(n)
    )
    expected = above / sum(math.sqrt(n) for n in lengths)
    weights = torch.cat([torch.full((n,), token_weight(n, "square")) for n in lengths])
    loss = next_token_loss(torch.cat(logits), torch.cat(targets), weights, float(weights.sum()))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_token_id_zero_gets_gradient():
    logits = torch.zeros(1, 5, requires_grad=True)
    next_token_loss(logits, torch.tensor([0]), torch.ones(1), 1.0).backward()
    assert logits.grad[0, 0] == pytest.approx(-0.8)


def test_a_sample_without_loss_tokens_weighs_nothing():
    assert token_weight(0, "square") == sample_weight(0, "square") == 0


class Head(nn.Linear):
    """An output head that remembers how many positions it was given in each call."""

    def __init__(self, hidden=6, vocabulary=11):
        super().__init__(hidden, vocabulary, dtype=torch.float64)
        self.rows = []

    def forward(self, states):
        self.rows.append(len(states))
        return super().forward(states)


def example(positions, seed=0):
    torch.manual_seed(seed)
    states = torch.randn(positions, 6, dtype=torch.float64, requires_grad=True)
    return states, torch.randint(0, 11, (positions,)), torch.rand(positions)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 20), st.integers(1, 25), st.integers(0, 3), st.integers(0, 1000))
def test_chunks_give_the_loss_and_the_gradients_of_the_whole(positions, chunk, spare, seed):
    states, targets, weights = example(positions, seed)
    head = Head()
    whole = next_token_loss(head(states), targets, weights, 3.0)
    expected = torch.autograd.grad(whole, (states, head.weight, head.bias))
    head.rows.clear()
    calls = max(1, math.ceil(positions / chunk)) + spare
    loss = chunked_next_token_loss(states, head, targets, weights, 3.0, chunk, calls if spare else None)
    assert len(head.rows) == calls
    found = torch.autograd.grad(loss, (states, head.weight, head.bias))
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(found, expected)
    assert len(head.rows) == (2 * calls if calls > 1 else 1), "as often in the backward pass; one piece is kept"
    assert max(head.rows) <= chunk


def test_a_rank_without_positions_has_a_zero_loss_that_reaches_states_and_head():
    states, targets, weights = example(0)
    head = Head()
    loss = chunked_next_token_loss(states, head, targets, weights, 3.0, 4, calls=5)
    loss.backward()
    assert loss.item() == 0
    assert states.grad.shape == (0, 6)
    assert torch.equal(head.weight.grad, torch.zeros_like(head.weight))
    assert head.rows == [0] * 10


def test_too_few_calls_are_refused():
    with pytest.raises(ValueError, match="2 chunks of 4 do not hold 9 positions"):
        chunked_next_token_loss(example(9)[0], Head(), *example(9)[1:], 3.0, 4, calls=2)


def test_no_tensor_of_positions_by_vocabulary_is_kept_for_the_backward_pass():
    states, targets, weights = example(64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        next_token_loss(Head()(states), targets, weights, 3.0)
        whole, kept = kept, []
        loss = chunked_next_token_loss(states, Head(), targets, weights, 3.0, 8)
    assert max(whole) == 64 * 11
    assert max(kept, default=0) <= 64 * 6
    assert loss.requires_grad


def test_token_id_zero_trains_in_chunks():
    states, _, weights = example(5)
    head = Head()
    chunked_next_token_loss(states, head, torch.zeros(5, dtype=torch.long), weights, 1.0, 2).backward()
    assert (states.grad.abs().sum(-1) > 0).all()
    assert head.bias.grad[0] < 0 < head.bias.grad[1:].min()


def test_dropout_in_front_of_the_head_is_the_same_in_both_passes():
    states, targets, weights = example(6)
    head = nn.Sequential(nn.Dropout(0.5), Head())
    torch.manual_seed(1)
    chunked_next_token_loss(states, head, targets, weights, 1.0, 6).backward()
    torch.manual_seed(1)
    dropped = nn.Dropout(0.5)(states.detach())
    # A state that was dropped gets no gradient; one that was kept gets some.
    assert torch.equal(states.grad == 0, dropped == 0)


def test_half_precision_logits_are_averaged_in_float32():
    states, targets, weights = example(6)
    head = Head()
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_next_token_loss(states.float(), head.float(), targets, weights, 1.0, 2)
    assert loss.dtype == torch.float32
