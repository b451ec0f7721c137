"""The mixture: exact over any window, a pure function of the position, and fair to every row."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.errors import InputError
from model.training.mixture import Mixture, pattern

RATIOS = st.lists(st.integers(1, 12), min_size=2, max_size=5)


@given(RATIOS, st.integers(0, 10**6), st.integers(1, 400))
def test_any_window_has_each_source_within_the_stated_bound_of_its_share(ratio, start, length):
    mixture = Mixture([5] * len(ratio), ratio, seed=0)
    drawn = [mixture.at(position)[0] for position in range(start, start + length)]
    bound = 2 - Fraction(1, len(ratio) - 1)
    for source, part in enumerate(ratio):
        deviation = abs(drawn.count(source) - length * Fraction(part, sum(ratio)))
        assert deviation <= bound
        assert len(ratio) > 2 or deviation < 1  # for two sources, as good as whole rows can be


@given(RATIOS)
def test_any_beginning_of_the_pattern_is_within_tijdemans_bound(ratio):
    sources = pattern(ratio)
    for n in range(1, len(sources) + 1):
        for source, part in enumerate(ratio):
            deviation = abs(sources[:n].count(source) - n * Fraction(part, sum(ratio)))
            assert deviation <= 1 - Fraction(1, 2 * len(ratio) - 2)


@pytest.mark.parametrize(("ratio", "period"), [((2, 5), 7), ((2, 7), 9), ((4, 10), 7), ((10, 35), 9)])
def test_the_published_ratios_are_exact_over_every_window_of_a_period(ratio, period):
    mixture = Mixture([3, 4], ratio, seed=1)
    for start in range(100):
        texts = sum(mixture.at(start + i)[0] == 0 for i in range(period))
        assert texts * sum(ratio) == period * ratio[0]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 5)), min_size=1, max_size=4), st.integers(0, 3))
def test_every_epoch_of_a_source_takes_each_of_its_rows_once(sources, seed):
    counts, ratio = zip(*sources, strict=True)
    mixture = Mixture(counts, ratio, seed)
    seen = [[] for _ in counts]
    for position in range(sum(ratio) * 3 * max(counts)):
        source, row = mixture.at(position)
        seen[source].append(row)
    for rows, count in zip(seen, counts, strict=True):
        for start in range(0, len(rows) - count + 1, count):
            assert sorted(rows[start : start + count]) == list(range(count))


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30))
def test_a_position_means_the_same_row_whatever_was_asked_before(positions):
    walked = Mixture([17, 29], (2, 5), seed=3)
    assert [walked.at(p) for p in positions] == [Mixture([17, 29], (2, 5), seed=3).at(p) for p in positions]


def test_epochs_sources_and_seeds_are_shuffled_differently():
    def rows(seed, source, epoch):
        mixture = Mixture([50, 50], (1, 1), seed)
        drawn = [row for kind, row in map(mixture.at, range(200)) if kind == source]
        return drawn[50 * epoch : 50 * epoch + 50]

    orders = [rows(0, 0, 0), rows(0, 0, 1), rows(0, 1, 0), rows(1, 0, 0), list(range(50))]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@pytest.mark.parametrize(
    ("counts", "ratio", "message"),
    [
        ([0, 9], (2, 5), "the ratio 2 : 5 asks for text-only, and there are none"),
        ([9, 9], (2, 0), "the ratio 2 : 0 is not 2 whole numbers above zero"),
        ([9, 9], (2, 5, 1), "the ratio 2 : 5 : 1 is not 2 whole numbers above zero"),
        ([9, 9], (9999, 10001), "the ratio 9999 : 10001 only repeats after more than 10000 rows; round it"),
    ],
)
def test_a_ratio_that_cannot_be_kept_is_refused(counts, ratio, message):
    with pytest.raises(InputError) as error:
        Mixture(counts, ratio, 0, names=("text-only", "multimodal"))
    assert str(error.value) == message
