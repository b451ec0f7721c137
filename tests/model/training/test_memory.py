"""Checkpointed and compiled layers give the same numbers; checkpointing keeps fewer bytes."""

import functools
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from model.data.errors import InputError
from model.families.interface import Inputs, Parts
from model.families.opening import load_network
from model.training import memory
from model.training.attention import use_varlen_attention
from model.training.drop_path import drop_path
from model.training.memory import checkpoint_activations, compiled_layers
from tests.tiny import TILE, byte_tokenizer, random_model
from tests.tiny_qwen import save_stock

FAMILIES = ("internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
LENGTHS = [24, 10]


@functools.cache
def network_of(family):
    if family == "internvl":
        return random_model(byte_tokenizer())[0]
    with tempfile.TemporaryDirectory() as directory:
        save_stock(family, Path(directory))
        return load_network(Path(directory))


def pack_for(network):
    """Two samples, the first with an image of 16 tokens."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 200, (1, sum(LENGTHS)), generator=generator)
    ids[0, 2:18] = network.config.image_token_id
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    if hasattr(network, "multi_modal_projector"):
        media = {"tiles": torch.randint(0, 256, (1, TILE, TILE, 3), generator=generator, dtype=torch.uint8)}
    else:
        vision = network.config.vision_config
        patches = torch.randn(64, 3 * vision.temporal_patch_size * vision.patch_size**2, generator=generator)
        media = {"patches": patches, "grids": torch.tensor([[1, 8, 8]])}
        positions = positions.expand(3, 1, -1)
    cu = torch.tensor([0, LENGTHS[0], sum(LENGTHS)], dtype=torch.int32)
    return Inputs(ids, None, positions, cu, media, False, torch.arange(ids.numel()))


def train_once(family, *, choice="none", rate=0.0):
    """(loss, gradients, bytes kept for the backward pass) of one step in training mode."""
    network = network_of(family).train()
    network.zero_grad()
    checkpoint_activations(network.parts(), choice)
    kept = {}

    def keep(tensor):
        # A tensor that several operations keep, or views of it, exist once.
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with use_varlen_attention(*network.parts().language), drop_path(network, rate) if rate else nullcontext():
        torch.manual_seed(7)
        inputs = pack_for(network)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states, auxiliary = network.hidden(inputs)
            loss = network.head(states).float().logsumexp(-1).mean() + (0 if auxiliary is None else auxiliary)
        loss.backward()
    checkpoint_activations(network.parts(), "none")
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return loss.item(), gradients, sum(size for storage, size in kept.items() if storage not in weights)


def assert_same(found, expected, **tolerance):
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, expected[1][name], msg=name, **tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_gives_the_same_gradients_from_fewer_bytes_in_every_family(family):
    expected = train_once(family)
    sizes = {}
    for choice in ("language", "vision", "all"):
        found = train_once(family, choice=choice)
        assert_same(found, expected, rtol=0, atol=0)
        sizes[choice] = found[2]
    assert sizes["all"] < min(sizes["language"], sizes["vision"])
    assert max(sizes["language"], sizes["vision"]) < expected[2]
    assert train_once(family)[2] == expected[2], "none switches it off"


def test_paths_dropped_in_the_forward_pass_are_dropped_when_computed_again():
    expected = train_once("internvl", rate=0.5)
    assert_same(train_once("internvl", choice="all", rate=0.5), expected, rtol=0, atol=0)
    assert train_once("internvl")[0] != pytest.approx(expected[0], rel=1e-6)


def test_a_projector_learns_between_checkpointed_frozen_parts():
    network = network_of("internvl")
    network.requires_grad_(False)
    network.multi_modal_projector.requires_grad_(True)
    try:
        expected, found = train_once("internvl"), train_once("internvl", choice="all")
    finally:
        network.requires_grad_(True)
    assert all(name.startswith("multi_modal_projector.") for name in expected[1])
    assert_same(found, expected, rtol=0, atol=0)


def test_a_part_without_layers_is_refused():
    with pytest.raises(ValueError, match="vision part has no layers"):
        checkpoint_activations(Parts(vision=(nn.Linear(2, 2),)), "vision")


@pytest.fixture
def dynamo_only(monkeypatch):
    """Trace and guard as torch.compile does, and run the traced operations uncompiled: no half a minute of g++."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **kwargs: compile_module(self, backend="eager", **kwargs))
    monkeypatch.setattr(memory, "_require_compiler", lambda: None)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_compiled_layers_drop_each_its_own_paths_and_do_so_again_when_computed_again(dynamo_only):
    network = network_of("internvl").train()
    tiles = torch.randint(0, 256, (3, TILE, TILE, 3), dtype=torch.uint8)

    def features_and_gradients():
        torch.manual_seed(7)
        features = network.tile_features(tiles)
        return features, *torch.autograd.grad(features.square().mean(), list(network.vision_tower.encoder.parameters()))

    with drop_path(network, 0.5):
        expected = features_and_gradients()
        checkpoint_activations(network.parts(), "vision")
        with compiled_layers(Parts(vision=network.parts().vision)):
            found = features_and_gradients()
    checkpoint_activations(network.parts(), "none")
    torch.testing.assert_close(found, expected)


def test_compiled_layers_attend_within_the_samples_of_a_pack(dynamo_only):
    network = network_of("internvl")
    inputs = pack_for(network)
    with torch.no_grad(), use_varlen_attention(*network.parts().language):
        expected = network.hidden(inputs).states
        with compiled_layers(Parts(language=network.parts().language)):
            torch.testing.assert_close(network.hidden(inputs).states, expected)


def test_layers_run_uncompiled_afterwards(dynamo_only):
    network = network_of("internvl")
    layer = network.language_model.model.layers[0]
    with compiled_layers(network.parts()):
        assert layer._compiled_call_impl is not None
    assert layer._compiled_call_impl is None


@pytest.mark.filterwarnings("ignore:dynamo_pgo")
def test_a_machine_without_a_compiler_is_told_so(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    torch._dynamo.reset()
    compiled = compiled_layers(Parts())
    with pytest.raises(InputError, match=r"^training.compile: .*no-such-compiler") as refused, compiled:
        pass
    assert "\n" not in str(refused.value)
