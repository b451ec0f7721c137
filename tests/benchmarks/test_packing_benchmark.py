"""The first-fit peer does what its description says; the mix is the one its name states."""

from statistics import mean, median

from hypothesis import given
from hypothesis import strategies as st

from benchmarks import packing_mix
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
