"""Both sides of the benchmark resume to the same stream, weights and moments; what is compared is what it says."""

import json
import random

import numpy as np
import pytest
import torch

from benchmarks import packing_mix, resume_cost, resume_sides
from benchmarks.peers.first_fit import first_fit
from benchmarks.peers.official_checkpoint import PackedDataset, buffer_bytes
from tests.tiny import TILE, tiny_config

SCALE = resume_sides.Scale(rows=60, max_tokens=1200, max_tiles=24, lookahead=12, buffers=3, warm_packs=4)


@pytest.fixture(scope="module")
def prepared():
    torch.set_num_threads(1)
    return resume_sides.prepare(SCALE.rows, tiny_config(tie_word_embeddings=True))


@pytest.fixture
def ours(prepared):
    network, rows, processor = prepared
    return resume_sides.Ours(network, processor, rows, SCALE)


@pytest.fixture
def peer(prepared, ours):
    network, rows, processor = prepared
    peer = resume_sides.Peer(network, processor, rows, SCALE)
    peer.take_moments(ours)
    return peer


def slots(engine):
    return {slot.name: [tensor.clone() for tensor in slot[1:]] for slot in engine.tensors()}


def same_pack(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_our_checkpoint_restores_weights_moments_and_the_stream(ours, tmp_path):
    unbroken = ours.reader()
    unbroken.resume(ours.state.packer)
    before = slots(ours.engine)
    ours.write(tmp_path, 2)
    with torch.no_grad():
        for slot in ours.engine.tensors():
            for tensor in slot[1:]:
                tensor.add_(1)
    reader = ours.reader()
    state = ours.load(tmp_path, reader)
    after = slots(ours.engine)
    assert state == ours.state
    assert all(torch.equal(a, b) for name in before for a, b in zip(before[name], after[name], strict=True))
    for step in range(2, 5):
        (one,), (other,) = unbroken.reading(step).batches, reader.reading(step).batches
        assert one.row_ids == other.row_ids
        assert torch.equal(one.inputs.ids, other.inputs.ids)


def test_the_peers_checkpoint_restores_weights_moments_random_states_and_the_stream(ours, peer, tmp_path):
    model = {name: tensor.clone() for name, tensor in peer.model.state_dict().items()}
    moments = [state["exp_avg"].clone() for state in peer.optimizer.state_dict()["state"].values()]
    checkpoint = peer.write(tmp_path, 2)
    drawn = random.random(), np.random.random(), torch.rand(1)
    with torch.no_grad():
        for parameter in peer.model.parameters():
            parameter.add_(1)
            peer.optimizer.state[parameter]["exp_avg"].add_(1)
    dataset = peer.new_dataset()
    assert peer.load(checkpoint, dataset) == 2
    assert (random.random(), np.random.random(), torch.rand(1)) == drawn
    assert all(torch.equal(tensor, model[name]) for name, tensor in peer.model.state_dict().items())
    restored = [state["exp_avg"] for state in peer.optimizer.state_dict()["state"].values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, restored, strict=True))
    assert all(same_pack(peer.dataset.next(), dataset.next()) for _ in range(4))


def test_both_sides_store_the_same_network_and_moments(ours, peer, tmp_path):
    stored = {
        "ours": sum(f.stat().st_size for f in ours.write(tmp_path / "ours", 2).glob("*.safetensors")),
        "peer": sum(
            (peer.write(tmp_path / "peer", 2) / name).stat().st_size for name in ("model.safetensors", "optimizer.pt")
        ),
    }
    parameters = sum(p.numel() for p in peer.model.parameters())
    for size in stored.values():
        assert 1 <= size / (12 * parameters) < 1.25  # names, and one file's header for every tensor


def test_the_peer_packs_what_first_fit_packs_and_its_buffers_keep_the_budgets(prepared):
    _, rows, processor = prepared
    samples = [processor.sample(row) for row in rows]
    dataset = PackedDataset(samples.__getitem__, SCALE.max_tokens, SCALE.max_tiles, SCALE.buffers)
    sizes = [sample.size for sample in samples]
    for expected in first_fit(sizes, SCALE.max_tokens, SCALE.max_tiles, SCALE.buffers):
        pack = dataset.next()
        assert pack["positions"].tolist() == expected
        assert pack["input_ids"].tolist() == [token for i in expected for token in samples[i].input_ids]
        assert pack["pixel_values"].shape == (sum(sizes[i].units for i in expected), 3, TILE, TILE)
        assert pack["data_index"].unique().tolist() == list(range(len(expected)))
        held = dataset.state()["buffer_list"]
        assert len(held) <= SCALE.buffers
        assert all(len(buffer["input_ids"]) <= SCALE.max_tokens for buffer in held)


def test_the_peer_starts_with_the_state_that_its_packs_leave(peer):
    dataset = peer.new_dataset()
    for _ in range(SCALE.warm_packs):
        dataset.next()
    state = dataset.state()
    assert state["drawn"] == peer.worker["drawn"]
    pairs = zip(state["buffer_list"], peer.worker["buffer_list"], strict=True)
    assert all(same_pack(one, other) for one, other in pairs)


def test_the_peers_state_is_a_copy_of_its_pixels_and_ours_is_a_few_numbers(ours, peer):
    pixels = [buffer["pixel_values"] for buffer in peer.dataset.state()["buffer_list"]]
    again = [buffer["pixel_values"] for buffer in peer.dataset.state()["buffer_list"]]
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in zip(pixels, again, strict=True))
    tiles = sum(map(len, pixels))
    assert tiles > 0 and buffer_bytes(peer.worker["buffer_list"]) > tiles * 3 * TILE**2 * 4
    assert len(json.dumps(ours.state.packer)) < 200


def test_a_round_measures_both_sides_and_keeps_one_checkpoint_of_each(ours, peer, tmp_path):
    costs = resume_cost.compare(ours, peer, tmp_path, rounds=1)
    assert {side: len(found) for side, found in costs.items()} == {"ours": 1, "peer": 1}
    assert all(min(cost.write, cost.load, cost.sync) > 0 for found in costs.values() for cost in found)
    assert costs["peer"][0].size - costs["ours"][0].size > 0.9 * buffer_bytes(peer.worker["buffer_list"])
    assert all(len(list((tmp_path / side).iterdir())) == 1 for side in costs)


def test_the_computed_bytes_follow_from_the_published_budgets():
    found = resume_cost.published(1e9, count=4000)
    tiles = 20 * packing_mix.MAX_TILES * 3 * 448 * 448 * 4
    assert tiles < found["peer_most_bytes"] < 1.01 * tiles
    assert 0 < found["peer_mean_bytes_on_the_mix"] < found["peer_most_bytes"]
    assert found["our_bytes"] < 8192
