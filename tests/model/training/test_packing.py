"""The packer: nothing is lost, budgets hold, no row starves, resuming changes nothing, and packs are full."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import packing_mix
from benchmarks.peers.first_fit import first_fit
from model.data.errors import InputError
from model.families.interface import Size
from model.training.config import PackingConfig
from model.training.packing import Packer, best_subset

TOKENS, UNITS = 60, 9
SIZES = st.lists(st.builds(Size, st.integers(1, TOKENS), st.integers(0, UNITS)), min_size=1, max_size=40)
LOOKAHEADS = st.integers(1, 12)


def packer_of(sizes, lookahead, tokens=TOKENS, units=UNITS):
    """A packer over ``sizes``, repeated for ever; row indices are stream positions, so that a test sees both."""
    config = PackingConfig(max_tokens=tokens, max_units=units, lookahead=lookahead)
    return Packer(config, lambda row: sizes[row % len(sizes)], lambda position: position)


@given(SIZES, LOOKAHEADS)
def test_budgets_hold_and_the_oldest_waiting_row_is_in_every_pack(sizes, lookahead):
    packer, packed = packer_of(sizes, lookahead), set()
    for _ in range(30):
        pack = packer.next()
        oldest = next(n for n in itertools.count() if n not in packed)
        assert pack[0] == oldest and pack == sorted(pack)
        assert not packed & set(pack)
        packed |= set(pack)
        assert sum(sizes[n % len(sizes)].tokens for n in pack) <= TOKENS
        assert sum(sizes[n % len(sizes)].units for n in pack) <= UNITS
    # Neither lost nor twice: every drawn position is in exactly one pack or waits.
    state = packer.state()
    assert sorted([*packed, *(position for position, *_ in state["waiting"])]) == list(range(state["drawn"]))


@given(SIZES, LOOKAHEADS)
def test_a_row_waits_for_at_most_lookahead_packs_and_is_at_most_that_early(sizes, lookahead):
    packer, entered, packed = packer_of(sizes, lookahead), {}, 0
    for number in range(40):
        drawn = packer.state()["drawn"]
        pack = packer.next()
        entered |= {position: number for position in range(drawn, packer.state()["drawn"])}
        for position in pack:
            assert number - entered[position] < lookahead
            assert packed >= position - lookahead + 1
        packed += len(pack)


@given(SIZES, LOOKAHEADS, st.integers(0, 20))
def test_resuming_at_any_pack_gives_the_same_packs(sizes, lookahead, packs_before):
    packer = packer_of(sizes, lookahead)
    for _ in range(packs_before):
        packer.next()
    state = json.loads(json.dumps(packer.state()))
    resumed = packer_of(sizes, lookahead)
    resumed.load(state)
    assert [resumed.next() for _ in range(10)] == [packer.next() for _ in range(10)]


@given(
    st.lists(st.builds(Size, st.integers(1, 30), st.integers(0, 5)), max_size=9), st.integers(0, 60), st.integers(0, 9)
)
def test_the_best_subset_is_as_full_as_the_best_of_all_subsets(sizes, tokens, units):
    chosen = best_subset(sizes, tokens, units)
    assert len(set(chosen)) == len(chosen) and sum(sizes[i].units for i in chosen) <= units
    every = itertools.chain.from_iterable(itertools.combinations(sizes, k) for k in range(len(sizes) + 1))
    fitting = [sum(s.tokens for s in some) for some in every if sum(s.units for s in some) <= units]
    assert sum(sizes[i].tokens for i in chosen) == max(total for total in fitting if total <= tokens)


def test_rows_are_named_by_the_order_not_by_the_position():
    config = PackingConfig(max_tokens=10, max_units=1, lookahead=3)
    packer = Packer(config, lambda row: Size(5, 0), lambda position: 100 - position)
    assert [packer.next(), packer.next()] == [[100, 99], [98, 97]]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (Size(61, 0), "row seven: 61 tokens; training.packing.max_tokens is 60"),
        (Size(1, 10), "row seven: 10 units; training.packing.max_units is 9"),
    ],
)
def test_a_row_beyond_a_budget_is_refused_by_name(size, message):
    config = PackingConfig(max_tokens=TOKENS, max_units=UNITS)
    packer = Packer(config, lambda row: size if row == 7 else Size(1, 0), lambda n: n, lambda row: "row seven")
    with pytest.raises(InputError) as error:
        packer.next()
    assert str(error.value) == message


def test_state_holds_positions_and_sizes_only_and_no_more_than_the_window():
    packer = packer_of([Size(7, 1), Size(31, 0), Size(44, 6)], 5)
    packer.next()
    state = packer.state()
    assert set(state) == {"drawn", "waiting"}
    assert all(type(number) is int for row in state["waiting"] for number in row) and len(state["waiting"]) < 5


def test_resuming_measures_nothing_again():
    packer = packer_of([Size(7, 1), Size(31, 0), Size(44, 6)], 5)
    packer.next()

    def unmeasurable(row):
        raise AssertionError(f"row {row} is measured again")

    again = Packer(packer.config, unmeasurable, lambda n: n % 3)
    again.load(json.loads(json.dumps(packer.state())))
    assert again.state() == packer.state()


def test_packs_of_the_named_mix_are_full_where_first_fit_leaves_five_percent():
    rows = packing_mix.rows(6000, seed=0)
    sizes = [row.size for row in rows]
    tokens, tiles = packing_mix.MAX_TOKENS, packing_mix.MAX_TILES
    packer = packer_of(sizes, 256, tokens, tiles)
    ours = [packer.next() for _ in range(300)]
    peer = list(first_fit(sizes, tokens, tiles))

    def fill(packs):
        return sum(sizes[n].tokens for pack in packs for n in pack) / (len(packs) * tokens)

    assert max(map(max, ours)) < len(sizes)  # nothing wrapped around: both saw the same stream
    assert fill(ours) > 0.995
    assert fill(ours) > fill(peer) + 0.04
