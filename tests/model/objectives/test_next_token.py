"""The next-token loss against its published formula."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.objectives.next_token import next_token_loss, sample_weight, token_weight


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
