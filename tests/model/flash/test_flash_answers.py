"""A network that routes: its three ways to see an image agree, neighbours change nothing, training leaves it whole."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from model.data.errors import InputError
from model.data.video import Video
from model.families.generation import Request, answer_rows, generate
from model.flash.decisions import Decision
from model.training.attention import use_varlen_attention
from model.training.batches import pack, pad
from tests.tiny import TILE, picture, question_row
from tests.tiny_flash import random_flash_model

FULL, SMALL = 16, 4
CASES = {
    "1 tile": [(1, 1)],
    "5 tiles": [(2, 2)],
    "13 tiles": [(4, 3)],
    "two images": [(2, 1), (1, 1)],
    "40 images": [(1, 1)] * 40,
    "text only": [],
}
DECISIONS = {
    "absolute": Decision(),
    "relative": Decision("relative", 0.3, 0.5),
    "budget": Decision("budget", token_budget=400),
}


@pytest.fixture(scope="module")
def flash(tokenizer):
    return random_flash_model(tokenizer)


def asked(grids, seed=7, text="What?"):
    rng = np.random.default_rng(seed)
    images = [picture(rng, *grid) for grid in grids]
    return [{"role": "user", "content": "<image>\n" * len(images) + text}], images


def answer(network, processor, messages, images, tokens=6):
    features = [found.features for found in network.encode(images)]
    return generate(network, processor, [Request(messages, features)], tokens)[0]


def greedy(network, processor, sample, tokens):
    """Token by token through ``forward``, without a cache."""
    ids, tiles = list(sample.input_ids), torch.from_numpy(sample.media["tiles"])
    compressed = torch.from_numpy(sample.media["compressed"])
    with torch.inference_mode():
        for _ in range(tokens):
            given = torch.tensor([ids])
            token = int(network(given, torch.ones_like(given), tiles, compressed)[0, -1].argmax())
            if token == processor.eos_token_id:
                break
            ids.append(token)
    return ids[len(sample.input_ids) :]


@pytest.mark.parametrize("rule", DECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_forward_generate_and_encode_agree(flash, case, rule):
    network, processor = flash
    network.route_by(DECISIONS[rule])
    messages, images = asked(CASES[case])
    sample = network.prepare([processor.conversation(messages, images, generate=True)])[0]
    encoded = network.encode(images)
    rows = [count for found in encoded for count in found.rows_per_tile]
    assert rows == np.where(sample.media["compressed"], SMALL, FULL).tolist()
    assert sample.input_ids.count(processor.image_token_id) == sum(rows)
    if len(rows) >= 5:
        assert set(rows) == {FULL, SMALL} or (rule == "budget" and sum(rows) <= 400), "all alike would show nothing"
    made = answer(network, processor, messages, images)
    assert made.prompt_tokens == len(sample.input_ids)
    assert made.token_ids == greedy(network, processor, sample, 6)


def test_a_network_that_routes_is_not_run_in_full_by_leaving_the_decisions_out(flash):
    network, processor = flash
    network.route_by(Decision())
    sample = processor.conversation(*asked([(2, 1)]), generate=True)
    ids, tiles = torch.tensor([sample.input_ids]), torch.from_numpy(sample.media["tiles"])
    with pytest.raises(ValueError, match=r"routes its tiles: give compressed_N, .* with route_by\(None\)"):
        network(ids, torch.ones_like(ids), tiles)
    with torch.inference_mode():
        named = network(ids, torch.ones_like(ids), tiles, torch.zeros(len(tiles), dtype=torch.bool))
        text = torch.tensor([[1, 2, 3]])
        assert network(text, torch.ones_like(text)).shape[1] == 3, "without tiles there is nothing to decide"
        network.route_by(None)
        assert torch.equal(network(ids, torch.ones_like(ids), tiles), named)


def test_packs_and_padded_batches_of_mixed_row_counts_have_the_states_of_each_alone(flash):
    network, processor = flash
    network.route_by(Decision())
    samples = [processor.conversation(*asked(grids, seed), generate=True) for seed, grids in enumerate(CASES.values())]
    samples = network.prepare([sample for sample in samples if sample.units < 40])
    for sample in samples:
        sample.trained[-3:] = [True] * 3
    packed, padded = pack(samples, "token"), pad(samples, "token", processor.eos_token_id)
    with torch.inference_mode():
        alone = torch.cat([network.hidden(pad([s], "token", 0).inputs).states for s in samples])
        torch.testing.assert_close(network.hidden(padded.inputs).states, alone, atol=1e-3, rtol=1e-3)
        with use_varlen_attention(network.language_model):
            torch.testing.assert_close(network.hidden(packed.inputs).states, alone, atol=1e-3, rtol=1e-3)


shapes = st.lists(st.sampled_from([(1, 1), (2, 1), (2, 2)]), max_size=2)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(shapes, min_size=2, max_size=4), st.sampled_from(list(DECISIONS)), st.integers(0, 99))
def test_no_neighbour_changes_a_decision_or_an_answer(flash, requests, rule, seed):
    network, processor = flash
    network.route_by(DECISIONS[rule])
    given_requests = [asked(grids, seed + number, f"What {number}?") for number, grids in enumerate(requests)]
    encoded = network.encode_batch([images for _, images in given_requests])
    made = [
        Request(messages, [found.features for found in features])
        for (messages, _), features in zip(given_requests, encoded, strict=True)
    ]
    together = generate(network, processor, made, 4)
    for (messages, images), features, completion in zip(given_requests, encoded, together, strict=True):
        assert [f.rows_per_tile for f in features] == [f.rows_per_tile for f in network.encode(images)]
        assert completion.token_ids == answer(network, processor, messages, images, 4).token_ids
    samples = [processor.conversation(*each, generate=True) for each in given_requests]
    alone = [network.prepare([sample])[0].input_ids for sample in samples]
    assert [sample.input_ids for sample in network.prepare(samples)] == alone


def test_rows_are_answered_as_they_are_routed(flash, rng):
    network, processor = flash
    network.route_by(Decision())
    rows = [
        question_row(f"r{i}", [picture(rng, *grid) for grid in grids], "1") for i, grids in enumerate(CASES.values())
    ]
    texts = answer_rows(network, processor, rows, batch_size=3, max_new_tokens=6)
    for row, text, grids in zip(rows, texts, CASES.values(), strict=True):
        images = [medium["bytes"] for medium in row["media"]]
        assert text == answer(network, processor, row["messages"][:1], images).text, grids
    network.route_by(None)
    assert answer_rows(network, processor, rows[1:3], max_new_tokens=6) != texts[1:3], "routing would show nothing"


@pytest.mark.parametrize("decision", [Decision(), None], ids=["routed", "full"])
def test_what_is_shown_is_what_was_prepared_and_no_tile_goes_through_the_tower_twice(flash, rng, monkeypatch, decision):
    network, processor = flash
    network.route_by(decision)
    grids = [[(2, 1)], [], [(2, 2), (1, 1)], [(1, 1)]]
    rows = [question_row(f"r{i}", [picture(rng, *grid) for grid in of_row], "1") for i, of_row in enumerate(grids)]
    samples = [processor.question(row) for row in rows]
    prepared = network.prepare(samples)
    media = {name: torch.from_numpy(np.concatenate([s.media[name] for s in prepared])) for name in prepared[0].media}
    monkeypatch.setattr("model.flash.encoding.TILES_AT_ONCE", 4)
    passed, tower = [], network.patches
    monkeypatch.setattr(network, "patches", lambda tiles: passed.append(len(tiles)) or tower(tiles))
    shown, visual = network.show(samples)
    assert sum(passed) == sum(sample.units for sample in samples) and max(passed) <= 10
    assert [sample.input_ids for sample in shown] == [sample.input_ids for sample in prepared]
    with torch.inference_mode():
        torch.testing.assert_close(visual, network.media_rows(media), atol=1e-4, rtol=1e-4)
    assert network.show(samples[1:2])[1] is None, "a question without an image has no rows"


def test_only_the_chosen_projector_runs_for_a_tile(flash):
    network, _ = flash
    ran = {"full": 0, "small": 0}
    hooks = [
        module.register_forward_hook(lambda _, given, __, name=name: ran.update({name: ran[name] + given[0].shape[0]}))
        for name, module in (("full", network.multi_modal_projector), ("small", network.compressed_projector))
    ]
    patches = torch.randn(5, 64, 64)
    try:
        for flags in ([1, 0, 1, 1, 0], [0] * 5, [1] * 5):
            ran.update(full=0, small=0)
            with torch.inference_mode():
                rows = network.project(patches, torch.tensor(flags, dtype=torch.bool))
            assert (ran["small"], ran["full"]) == (sum(flags), 5 - sum(flags))
            start = 0
            for number, flag in enumerate(flags):
                own = network.project(patches[number : number + 1], torch.tensor([bool(flag)]))
                torch.testing.assert_close(rows[start : start + len(own)], own, atol=1e-5, rtol=1e-5)
                start += len(own)
            assert start == len(rows)
    finally:
        for hook in hooks:
            hook.remove()


def test_frames_of_a_video_are_routed_one_by_one(flash, rng):
    network, processor = flash
    network.route_by(Decision())
    frames = [picture(rng) for _ in range(8)]
    video = Video(frames, [float(i) for i in range(8)], 1.0)
    sample = processor.conversation([{"role": "user", "content": "<video> What?"}], [video], generate=True)
    made = network.prepare([sample])[0]
    alone = [network.encode([frame])[0].rows_per_tile == [SMALL] for frame in frames]
    assert made.media["compressed"].tolist() == alone
    assert 0 < sum(alone) < 8


@pytest.mark.parametrize("rule", ["absolute", "relative"])
def test_all_grid_tiles_of_an_image_of_one_colour_get_one_decision(flash, rule):
    network, _ = flash
    network.route_by(DECISIONS[rule])
    for colour in ("white", "black", "red"):
        assert len(set(network.encode([Image.new("RGB", (4 * TILE, 3 * TILE), colour)])[0].rows_per_tile)) == 1


def test_a_budget_that_cannot_be_met_names_the_row(flash, rng):
    network, processor = flash
    network.route_by(Decision("budget", token_budget=15))
    row = question_row("large", [picture(rng, 2, 2)], "1")
    with pytest.raises(InputError, match=r"row large: 5 tiles need at least 20 visual tokens; the budget.* is 15"):
        answer_rows(network, processor, [row])
    with pytest.raises(InputError, match="5 tiles need at least 20"):
        network.encode([picture(rng, 2, 2)])


def test_equal_images_under_another_decision_have_another_key(flash, rng):
    network, _ = flash
    image = picture(rng, 2, 2)
    keys = set()
    for threshold in (0.0, 1.0):
        network.route_by(Decision("absolute", threshold))
        keys.add(network.encode([image])[0].key)
    assert len(keys) == 2


# --- training


@pytest.mark.parametrize("train", ["all", "projector"])
def test_fine_tuning_neither_changes_nor_loses_router_and_second_projector(tokenizer, rng, tmp_path, train):
    from model.flash.checkpoint import load_model, save_model
    from model.training.config import TrainingConfig
    from model.training.loop import supervised_stage
    from model.training.loop import train as run

    network, processor = random_flash_model(tokenizer)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    rows = [question_row(f"r{i}", [picture(rng)], "12") for i in range(4)]
    config = TrainingConfig(
        learning_rate=1e-2, steps=2, batch_size=2, threads=1, precision="float32", train=train, weight_decay=0.1
    )
    run(network, processor, rows, supervised_stage("sft", config), config, tmp_path / "state", lambda *_: None)
    save_model(network, processor, tmp_path / "tuned")
    after = load_model(tmp_path / "tuned").state_dict()
    flash = [name for name in before if name.startswith(("router.", "compressed_projector."))]
    assert len(flash) == 8 + 1 + 4 * 4 + 4 * 2 + 4 * 6 + 4
    assert all(torch.equal(before[name], after[name]) for name in flash)
    assert not torch.equal(
        before["multi_modal_projector.linear_1.weight"], after["multi_modal_projector.linear_1.weight"]
    )
    assert load_model(tmp_path / "tuned").decision == network.decision


@pytest.mark.parametrize("flags", [[False], [True], None])
def test_both_projectors_get_a_gradient_whatever_a_batch_holds_while_the_second_trains(tokenizer, rng, flags):
    """Ranks wait for each other's gradients."""
    network, processor = random_flash_model(tokenizer)
    network.train()
    sample = processor.conversation(*asked([(1, 1)] if flags else []), generate=True)
    sample.trained[-1] = True
    if flags:
        sample = processor.compress(sample, flags)
    blank = {name: array for name, array in processor.blank_media().items()}
    network.hidden(pad([sample], "token", 0, blank).inputs).states.sum().backward()
    for module in (network.multi_modal_projector, network.compressed_projector):
        assert all(parameter.grad is not None for parameter in module.parameters())
    used = network.compressed_projector if flags == [True] else network.multi_modal_projector
    assert flags is None or used.linear_1.weight.grad.abs().sum() > 0
    other = network.multi_modal_projector if flags == [True] else network.compressed_projector
    assert other.linear_1.weight.grad.abs().sum() == 0
