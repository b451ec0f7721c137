"""M-RoPE positions: the published rule, and where transformers 5.19 follows it and where not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.families.qwen_positions import mrope_positions, position_delta

TEXT, IMAGE, VIDEO = 0, 101, 102
GENERATIONS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


def lay(*pieces):
    """(ids, grids): an int is that many text tokens, (kind, grid) an image or video."""
    ids, grids = [], []
    for piece in pieces:
        if isinstance(piece, int):
            ids += [TEXT] * piece
        else:
            kind, grid = piece
            ids += [kind] * (int(np.prod(grid)) // 4)
            grids.append(grid)
    return ids, grids


def ours(ids, grids, intervals):
    return mrope_positions(ids, grids, intervals, visual_ids=(IMAGE, VIDEO), merge=2)


@pytest.fixture(scope="module")
def stock():
    """transformers' networks, for their ``get_rope_index``."""
    from tests.tiny_qwen import stock_network

    return {generation: stock_network(generation).model for generation in GENERATIONS}


def theirs(network, ids, images=(), videos=(), seconds=None):
    """transformers' positions [3, T] and delta."""
    import torch

    kinds = [{IMAGE: 1, VIDEO: 2}.get(token, 0) for token in ids]
    timed = {} if seconds is None else {"second_per_grid_ts": torch.tensor(seconds)}
    positions, delta = network.get_rope_index(
        torch.tensor([ids]),
        mm_token_type_ids=torch.tensor([kinds]),
        image_grid_thw=torch.tensor(images) if images else None,
        video_grid_thw=torch.tensor(videos) if videos else None,
        **timed,
    )
    return positions[:, 0].numpy(), int(delta)


def test_text_after_a_long_video_starts_after_its_last_moment():
    ids, grids = lay(5, (VIDEO, (20, 8, 8)), 7)
    positions = ours(ids, grids, [2.0])
    assert positions.dtype == np.int64
    assert positions[0, 5:-7].max() == 43
    assert positions[1:, 5:-7].max() == 8
    np.testing.assert_array_equal(positions[:, -7:], np.tile(np.arange(44, 51), (3, 1)))
    assert position_delta(positions) == 51 - len(ids)


def test_transformers_lets_the_text_after_a_long_video_overlap_it(stock):
    ids, grids = lay(5, (VIDEO, (20, 8, 8)), 7)
    positions, delta = theirs(stock["qwen2_5_vl"], ids, videos=grids, seconds=[1.0])
    agree = ours(ids, grids, [2.0])
    np.testing.assert_array_equal(positions[:, :-7], agree[:, :-7])
    assert positions[0, 5:-7].max() == 43
    assert positions[:, -7].tolist() == [9, 9, 9]  # the published rule: 44
    assert delta == 44 - len(ids)  # and the first generated token jumps from 15 to 44


@pytest.mark.parametrize("generation", GENERATIONS)
def test_images_and_text_stand_where_transformers_puts_them(stock, generation):
    ids, grids = lay(3, (IMAGE, (1, 6, 10)), 2, (IMAGE, (1, 4, 4)), 1, (IMAGE, (1, 12, 2)), 4)
    positions, delta = theirs(stock[generation], ids, images=grids)
    intervals = [None if generation == "qwen3_vl" else 1.0] * 3
    np.testing.assert_array_equal(ours(ids, grids, intervals), positions)
    assert position_delta(ours(ids, grids, intervals)) == delta


@pytest.mark.parametrize(("generation", "interval"), [("qwen2_vl", 1.0), ("qwen2_5_vl", 2.0)])
def test_videos_shorter_than_wide_stand_where_transformers_puts_them(stock, generation, interval):
    ids, grids = lay(3, (IMAGE, (1, 4, 6)), 2, (VIDEO, (3, 10, 12)), 5)
    seconds = [1.0] if generation == "qwen2_5_vl" else None
    positions, delta = theirs(stock[generation], ids, images=grids[:1], videos=grids[1:], seconds=seconds)
    np.testing.assert_array_equal(ours(ids, grids, [1.0, interval]), positions)
    assert position_delta(ours(ids, grids, [1.0, interval])) == delta


def test_a_video_among_timestamps_stands_where_transformers_puts_it(stock):
    frame = (VIDEO, (1, 4, 6))
    ids, _ = lay(2, (IMAGE, (1, 8, 4)), 9, frame, 5, frame, 5, frame, 6)
    grids = [(1, 8, 4), (3, 4, 6)]
    positions, delta = theirs(stock["qwen3_vl"], ids, images=grids[:1], videos=grids[1:])
    np.testing.assert_array_equal(ours(ids, grids, [1.0, None]), positions)
    assert position_delta(ours(ids, grids, [1.0, None])) == delta


@pytest.mark.parametrize(
    ("interval", "times"),
    [(1.0, [0, 1, 2, 3, 4]), (0.5, [0, 0, 1, 1, 2]), (1.5, [0, 1, 3, 4, 6]), (50.0, [0, 50, 100, 150, 200])],
)
def test_moments_between_positions_are_rounded_down(interval, times):
    ids, grids = lay(1, (VIDEO, (5, 2, 2)), 1)
    positions = ours(ids, grids, [interval])
    assert (positions[0, 1:-1] - 1).tolist() == times
    assert positions[:, -1].tolist() == [times[-1] + 2] * 3


def test_fractional_seconds_are_not_cut_off(stock):
    ids, grids = lay(2, (VIDEO, (4, 12, 12)), 3)
    positions, _ = theirs(stock["qwen2_5_vl"], ids, videos=grids, seconds=[0.8])
    np.testing.assert_array_equal(ours(ids, grids, [2 * 0.8]), positions)
    assert sorted(set(positions[0, 2:-3] - 2)) == [0, 1, 3, 4]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5)), max_size=4))
def test_what_follows_never_overlaps_what_came_before(blocks):
    pieces = [2]
    for time, height, width, text in blocks:
        pieces += [(VIDEO, (time, 2 * height, 2 * width)), text]
    ids, grids = lay(*pieces)
    positions = ours(ids, grids, [2.5] * len(grids))
    starts = np.flatnonzero(np.diff(np.array(ids), prepend=TEXT))
    for start in starts:
        assert positions[:, start].tolist() == [positions[:, :start].max() + 1] * 3


def test_text_alone_counts():
    np.testing.assert_array_equal(ours([TEXT] * 4, [], []), np.tile(np.arange(4), (3, 1)))
    assert position_delta(ours([TEXT] * 4, [], [])) == 0


def test_placeholders_that_do_not_fit_the_grids_are_an_error():
    ids, grids = lay(1, (IMAGE, (1, 4, 4)), 1)
    with pytest.raises(ValueError, match="4 visual tokens do not fit"):
        ours(ids, [*grids, (1, 2, 2)], [1.0, 1.0])
    with pytest.raises(ValueError, match="do not fit a block of 4"):
        ours([TEXT, IMAGE, TEXT, IMAGE, IMAGE, IMAGE], grids, [1.0])
