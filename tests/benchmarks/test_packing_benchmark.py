"""The first-fit peer does what its description says, the mix is the one its name states, all ways train on one set."""

from statistics import mean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import packing, packing_mix
from benchmarks.peers.first_fit import first_fit
from model.families.interface import Size

SIZES = st.lists(st.builds(Size, st.integers(1, 20), st.integers(0, 6)), max_size=60)


@given(SIZES, st.integers(0, 5))
def test_first_fit_keeps_the_budgets_and_packs_no_sample_twice(sizes, open_packs):
    packs = list(first_fit(sizes, 20, 6, open_packs))
    for pack in packs:
        assert sum(sizes[i].tokens for i in pack) <= 20
        assert sum(sizes[i].units for i in pack) <= 6
    packed = [i for pack in packs for i in pack]
    assert len(set(packed)) == len(packed)
    # What is left fits into the packs that may stay open.
    assert len(sizes) - len(packed) <= 20 * open_packs


def test_a_sample_joins_the_first_open_pack_with_room_most_tiles_first():
    # The second has no room beside the first. The third has room beside either and joins the one with more tiles,
    # though that opened later; the fourth follows it and fills that pack to the last token.
    assert list(first_fit([Size(12, 1), Size(9, 3), Size(8, 0), Size(3, 0)], 20, 6)) == [[1, 2, 3]]


def test_full_packs_leave_and_beyond_the_limit_the_one_with_most_tiles_does():
    assert list(first_fit([Size(20, 0)], 20, 6)) == [[0]]
    assert list(first_fit([Size(5, 6)], 20, 6)) == [[0]]
    assert list(first_fit([Size(15, 1), Size(15, 2), Size(15, 0)], 20, 6, max_buffer_size=2)) == [[1]]


def test_the_mix_has_the_stated_shares_and_lengths():
    rows = packing_mix.rows(14_000, seed=3)
    texts = [row.size.tokens for row in rows if not row.tiles]
    images = [row for row in rows if row.tiles]
    assert len(images) / len(texts) == 2.5
    assert {row.tiles for row in images} == set(range(1, 14))
    assert 900 < median(texts) < 1100 and 1800 < mean(texts) < 2030
    assert 110 < median(row.text_tokens for row in images) < 130
    tokens_per_tile = sum(row.size.tokens for row in rows) / sum(row.tiles for row in images)
    assert tokens_per_tile > packing_mix.MAX_TOKENS / packing_mix.MAX_TILES  # so it is tokens that bind


def test_scaled_the_mix_takes_the_same_share_of_a_scaled_pack():
    for row, small in zip(packing_mix.rows(200, 0), packing_mix.rows(200, 0, 16), strict=True):
        assert small.tiles == row.tiles
        assert abs(small.size.tokens - row.size.tokens / 16) <= 3


def test_our_fill_is_above_the_aim_and_first_fit_below_ours_on_the_same_rows():
    sizes = [row.size for row in packing_mix.rows(5000, seed=7)]
    ours = packing.measure_fill(packing.our_packs, sizes)
    peer = packing.measure_fill(first_fit, sizes)
    assert ours.tokens > packing.FILL_AIM
    assert ours.tokens > peer.tokens
    assert ours.packs_per_10000_rows < peer.packs_per_10000_rows


def test_every_way_of_batching_has_the_same_rows_once_and_the_packers_memory_is_the_budget():
    from benchmarks import packing_speed

    mix = packing_mix.rows(700, seed=5, scale=packing_speed.SCALE)
    ways = packing_speed.batches_of_rows(mix, packs=12)
    budget = packing_mix.MAX_TOKENS // packing_speed.SCALE
    for groups in ways.values():
        assert sorted(i for group in groups for i in group) == sorted(i for group in ways["packed"] for i in group)
    assert all(sum(mix[i].size.tokens for i in group) <= budget for group in ways["packed"])
    for group in ways["bucketed by tokens"]:
        assert len(group) * max(mix[i].size.tokens for i in group) <= budget
    rows_of_a_batch = {len(group) for way in ("padded", "bucketed") for group in ways[way]}
    assert max(rows_of_a_batch) - min(rows_of_a_batch) <= 3  # no small rest trains alone


@pytest.mark.slow
def test_a_round_trains_every_way_and_counts_real_tokens_only():
    from benchmarks import packing_speed

    speeds = packing_speed.measure(packs=2, rounds=1)
    assert all(len(values) == 1 and values[0] > 0 for values in speeds.tokens_per_second.values())
    assert speeds.padding["packed"] == 0 < speeds.padding["bucketed by tokens"] < speeds.padding["padded"]
    assert speeds.largest["packed"] == packing_mix.MAX_TOKENS // packing_speed.SCALE
    assert speeds.tokens <= 2 * speeds.largest["packed"]
