"""Labels from loss ratios: against numpy's percentile, and on streams whose balance is known."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.objectives.router import COMPRESS, KEEP, RatioWindow, labels, log_ratios, router_loss

FLOATS = st.floats(-20, 20, allow_nan=False)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(FLOATS, max_size=9), max_size=8), st.integers(1, 20), st.floats(1, 99))
def test_the_threshold_is_numpys_percentile_of_the_latest_ratios(steps, size, percentile):
    window = RatioWindow(size, percentile)
    seen: list[float] = []
    for ratios in steps:
        window.add(ratios)
        seen += ratios
        assert len(window) == min(size, len(seen))
        assert window.threshold == (float(np.percentile(seen[-size:], percentile)) if seen else None)


@given(st.lists(FLOATS, max_size=30))
def test_a_window_survives_a_checkpoint_to_the_last_bit(ratios):
    window, other = RatioWindow(8, 30), RatioWindow(8, 30)
    window.add(ratios)
    other.add([99.0])
    other.load(json.loads(json.dumps(window.state())))
    assert other.threshold == window.threshold
    window.add([0.5])
    other.add([0.5])
    assert other.state() == window.state()


@pytest.mark.parametrize("percentile", [20, 50, 80])
def test_a_stationary_stream_is_labelled_in_the_share_that_the_percentile_names(percentile):
    rng = np.random.default_rng(0)
    window = RatioWindow(1000, percentile)
    window.add(rng.normal(3, 2, 1000).tolist())
    compressed = total = 0
    for _ in range(200):
        ratios = torch.from_numpy(rng.normal(3, 2, 32))
        compressed += int((labels(ratios, window.threshold) == COMPRESS).sum())
        total += len(ratios)
        window.add(ratios.tolist())
    assert compressed / total == pytest.approx(percentile / 100, abs=0.02)


def test_a_drifting_stream_stays_balanced_where_a_fixed_threshold_would_not():
    rng = np.random.default_rng(0)
    window, compressed, under_first = RatioWindow(256, 50), [], []
    window.add(rng.normal(0, 1, 256).tolist())
    first = window.threshold
    for step in range(300):
        ratios = torch.from_numpy(rng.normal(step / 50, 1, 64))
        compressed += (labels(ratios, window.threshold) == COMPRESS).tolist()
        under_first += (ratios < first).tolist()
        window.add(ratios.tolist())
    assert 0.4 < np.mean(compressed) < 0.5
    assert np.mean(under_first) < 0.2


def test_the_ratio_is_that_of_the_losses_where_they_are_above_the_floor():
    compressed, full = torch.tensor([2.0, 0.5]), torch.tensor([0.5, 0.5])
    np.testing.assert_allclose(log_ratios(compressed, full, 1e-9).exp(), [4, 1], rtol=1e-6)


def test_losses_of_zero_or_what_rounding_leaves_under_it_have_a_finite_ratio():
    compressed, full = torch.tensor([0.0, 1.0, -1e-8]), torch.tensor([0.0, 0.0, -1e-7])
    found = log_ratios(compressed, full, 1e-3)
    assert found[0] == found[2] == 0, "nothing changed: r is 1"
    assert found[1].item() == pytest.approx(math.log(1.001 / 0.001))


def test_what_lies_under_the_threshold_is_compressed_and_column_0_of_the_router_says_so():
    found = labels(torch.tensor([0.9, 1.0, 1.1]), 1.0)
    assert found.tolist() == [COMPRESS, KEEP, KEEP], "equal is kept"
    logits = torch.tensor([[9.0, -9.0], [-9.0, 9.0], [-9.0, 9.0]], requires_grad=True)
    assert router_loss(logits, found, 3).item() < 1e-6
    assert router_loss(logits.flip(1), found, 3).item() == pytest.approx(18)


def test_shares_of_micro_batches_add_up_to_the_mean_over_the_labelled_tiles():
    torch.manual_seed(0)
    logits, given_labels = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    parts = [router_loss(part, y, 5) for part, y in zip(logits.split([2, 3]), given_labels.split([2, 3]), strict=True)]
    probabilities = logits.softmax(-1)[torch.arange(5), given_labels]
    torch.testing.assert_close(sum(parts), -probabilities.log().mean())
