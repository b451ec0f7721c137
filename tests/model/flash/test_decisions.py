"""Probabilities to decisions: the three rules, their limits, and samples that lose placeholders."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.errors import InputError
from model.families.interface import Sample
from model.flash.compression import compress_sample, tiles_per_image
from model.flash.decisions import NOTHING, Decision, decide, stated_decision

probability = st.integers(0, 10_000).map(lambda number: number / 10_000)
image = st.lists(probability, min_size=1, max_size=13)
requests = st.lists(image, min_size=1, max_size=5)
rules = st.one_of(
    st.builds(Decision, st.just("absolute"), probability),
    st.builds(Decision, st.just("relative"), probability, probability),
)


def joined(images):
    return np.array([p for own in images for p in own]), [len(own) for own in images]


@settings(max_examples=40)
@given(requests, requests, rules)
def test_an_image_is_decided_as_if_it_were_alone(own, neighbours, decision):
    together = decide(*joined([*own, *neighbours]), decision)
    assert np.array_equal(together[: sum(map(len, own))], decide(*joined(own), decision))


@settings(max_examples=40)
@given(image, probability, probability)
def test_relative_is_the_quantile_of_numpy_and_at_least_the_absolute_threshold(own, share, threshold):
    expected = (np.array(own) >= np.quantile(own, share) - 1e-9) & (np.array(own) >= threshold) & (threshold < 1)
    assert np.array_equal(decide(np.array(own), [len(own)], Decision("relative", threshold, share)), expected)


@settings(max_examples=40)
@given(requests, st.integers(1, 20_000))
def test_a_budget_is_met_by_the_fewest_and_most_compressible_tiles(images, budget):
    probabilities, counts = joined(images)
    tiles = len(probabilities)
    if budget < 64 * tiles:
        with pytest.raises(InputError, match=f"{tiles} tiles need at least {64 * tiles} visual tokens"):
            decide(probabilities, counts, Decision("budget", token_budget=budget))
        return
    chosen = decide(probabilities, counts, Decision("budget", token_budget=budget))
    tokens = 256 * tiles - 192 * chosen.sum()
    assert tokens <= budget
    assert not chosen.any() or tokens + 192 > budget, "one tile less would do"
    if chosen.any() and not chosen.all():
        assert probabilities[chosen].min() >= probabilities[~chosen].max()


@pytest.mark.parametrize("decision", [Decision(), Decision("relative", 0.5, 0.9), Decision("budget", token_budget=64)])
def test_the_only_tile_of_an_image_can_be_compressed(decision):
    """In the released code it equals its own quantile, and only a greater one is compressed."""
    assert decide(np.array([0.6]), [1], decision).tolist() == [True]


@pytest.mark.parametrize("value", [0.6, 0.60005, 0.600005, 0.0, 1.0])
def test_tiles_of_one_colour_are_decided_alike_whatever_their_last_bits(value):
    same = np.clip(value + np.array([0, 1e-7, -1e-7, 2e-7]), 0, 1)
    assert decide(same, [4], Decision("relative", 0.0, 0.5)).tolist() == [True] * 4
    assert decide(same, [4], Decision("budget", token_budget=1024 - 2 * 192)).tolist() == [True, True, False, False]


def test_an_absolute_threshold_that_is_reached_is_enough():
    assert decide(np.array([0.5, 0.49]), [2], Decision("absolute", 0.5)).tolist() == [True, False]
    assert decide(np.zeros(0), [], Decision("relative")).tolist() == []
    assert decide(np.ones(1), [1], Decision("absolute", 0.999)).tolist() == [True]
    with pytest.raises(ValueError, match="probabilities of shape"):
        decide(np.zeros(3), [2], Decision())


@pytest.mark.parametrize("rule", ["absolute", "relative"])
def test_a_threshold_of_one_compresses_nothing_although_float32_rounds_probabilities_to_one(rule):
    rounded = torch.tensor([[40.0, 0.0]]).softmax(-1)[:, 0].numpy()
    assert rounded[0] == 1
    assert decide(rounded, [1], Decision(rule, NOTHING)).tolist() == [False]


@pytest.mark.parametrize(
    ("given_keys", "words"),
    [
        ({"flash_absolute_threshold": 1.01}, r"flash_absolute_threshold: 1\.01 is not a number in \[0, 1\]"),
        ({"flash_relative_threshold": -0.1}, r"flash_relative_threshold: -0\.1"),
        ({"flash_absolute_threshold": float("nan")}, "flash_absolute_threshold: nan"),
        ({"flash_absolute_threshold": "0.5"}, "flash_absolute_threshold: '0.5'"),
        ({"flash_decision": "batch"}, "flash_decision: 'batch' is not 'absolute', 'relative' or 'budget'"),
        ({"flash_decision": "budget"}, "flash_token_budget: goes with the decision 'budget'"),
        ({"flash_token_budget": 100}, "flash_token_budget: goes with the decision 'budget'"),
        ({"flash_decision": "budget", "flash_token_budget": 0}, "flash_token_budget: 0 is not a positive number"),
        ({"flash_mode": "false"}, "flash_mode: 'false' is neither true nor false"),
    ],
)
def test_settings_without_meaning_are_refused(given_keys, words):
    with pytest.raises(InputError, match=words):
        stated_decision({"flash_mode": True} | given_keys)
    assert stated_decision(given_keys | {"flash_mode": False}) is None


def test_a_released_configuration_is_read_as_absolute():
    released = {"flash_mode": True, "flash_relative_threshold": 0.1, "flash_absolute_threshold": 0.4}
    assert stated_decision(released) == Decision("absolute", 0.4, 0.1)
    decision = Decision("budget", token_budget=500)
    assert stated_decision(decision.keys()) == decision


TOKEN, ROWS = 7, 8
SHAPE = {"image_token_id": TOKEN, "rows_per_tile": ROWS}


@settings(max_examples=50)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=4), max_size=3))
def test_compressed_tiles_keep_the_first_quarter_of_their_placeholders(images):
    ids, trained, expected = [1], [False], [1]
    for number, tiles in enumerate(images):
        ids += [2, *[TOKEN] * ROWS * len(tiles), 3, 10 + number]
        trained += [False] * (2 + ROWS * len(tiles)) + [True]
        expected += [2, *[TOKEN] * sum(2 if tile else 8 for tile in tiles), 3, 10 + number]
    flags = [tile for tiles in images for tile in tiles]
    media = {"tiles": np.zeros((len(flags), 2, 2, 3), np.uint8)}
    sample = Sample("r", ids, trained, media, len(flags))
    assert tiles_per_image(ids, **SHAPE) == [len(tiles) for tiles in images]
    made = compress_sample(sample, flags, **SHAPE)
    assert made.input_ids == expected
    assert made.media["compressed"].tolist() == flags
    answers = [token for token, is_answer in zip(made.input_ids, made.trained, strict=True) if is_answer]
    assert answers == [10 + number for number in range(len(images))], "the trained tokens move up with their text"
    assert sample.input_ids == ids and "compressed" not in sample.media
    with pytest.raises(ValueError, match="decisions for"):
        compress_sample(made, flags, **SHAPE)
