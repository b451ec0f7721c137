"""Bootstrap intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scoring import intervals
from scoring.intervals import bootstrap_difference, bootstrap_mean

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def test_the_interval_of_a_mean_agrees_with_scipy():
    values = np.random.default_rng(1).beta(2, 5, 300)
    ours = bootstrap_mean(values, resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-3)
    assert ours.mean == pytest.approx(values.mean())


def test_the_interval_of_a_share_has_the_normal_approximation_s_width():
    values = [1.0] * 150 + [0.0] * 100
    interval = bootstrap_mean(values, resamples=20_000)
    half = 1.96 * (0.6 * 0.4 / 250) ** 0.5
    assert (interval.low, interval.high) == pytest.approx((0.6 - half, 0.6 + half), abs=0.005)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    samples = (generator.random((400, 100)) < 0.7).astype(float)
    intervals_ = [bootstrap_mean(sample, resamples=400) for sample in samples]
    covered = np.mean([i.low <= 0.7 <= i.high for i in intervals_])
    assert 0.90 <= covered <= 0.98


def test_pairing_cancels_what_makes_rows_hard():
    generator = np.random.default_rng(0)
    hard = generator.random(200)
    difference = bootstrap_difference(hard + 0.01, hard)
    assert difference.mean == pytest.approx(0.01)
    assert difference.high - difference.low < 1e-12


@given(SCORES, st.integers(0, 2**31))
def test_the_same_seed_gives_the_same_bits(values, seed):
    assert bootstrap_mean(values, resamples=50, seed=seed) == bootstrap_mean(values, resamples=50, seed=seed)


@given(SCORES)
def test_bounds_lie_within_the_values(values):
    interval = bootstrap_mean(values, resamples=50)
    assert min(values) - 1e-12 <= interval.low <= interval.high <= max(values) + 1e-12


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_exchanging_the_sides_negates_the_difference(pairs):
    ours, theirs = zip(*pairs, strict=True)
    forth, back = bootstrap_difference(ours, theirs, resamples=50), bootstrap_difference(theirs, ours, resamples=50)
    assert (forth.mean, forth.low, forth.high) == pytest.approx((-back.mean, -back.high, -back.low), abs=1e-12)


def test_resampling_in_parts_gives_the_bits_of_one_part(monkeypatch):
    values = list(np.random.default_rng(3).random(37))
    whole = bootstrap_mean(values, resamples=500)
    monkeypatch.setattr(intervals, "_CHUNK", 37 * 7)
    assert bootstrap_mean(values, resamples=500) == whole


@pytest.mark.parametrize(
    ("values", "options", "reason"),
    [
        ([], {}, "at least one"),
        ([float("nan")], {}, "finite"),
        ([1.0], {"resamples": 0}, "resamples"),
        ([1.0], {"level": 1.0}, "level"),
    ],
)
def test_an_interval_of_nothing_is_an_error(values, options, reason):
    with pytest.raises(ValueError, match=reason):
        bootstrap_mean(values, **options)


def test_scores_of_different_rows_cannot_be_paired():
    with pytest.raises(ValueError, match="paired"):
        bootstrap_difference([1.0, 0.0], [1.0])
