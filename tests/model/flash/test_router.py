"""The router and the second projector against their description in plain operations, and what initialises them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from model.data.errors import InputError
from model.families.opening import load_network, load_processor, save_network
from model.flash.conversion import convert
from model.flash.projectors import pixel_unshuffle
from model.flash.weights import FLASH_SHARD, SINGLE
from tests.tiny_flash import FLASH, D, random_flash_model

HEADS = 16


@pytest.fixture(scope="module")
def released(tiny_directory, tmp_path_factory):
    """A tiny checkpoint in the released layout, with all its tensors in one file."""
    target = tmp_path_factory.mktemp("released") / "tiny"
    convert(tiny_directory, target, "original")
    generator = torch.Generator().manual_seed(1)
    extra = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in FLASH.items()}
    save_file(load_file(target / SINGLE) | extra, target / SINGLE, metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    config |= {"flash_mode": True, "flash_relative_threshold": 0.1, "flash_absolute_threshold": 0.5}
    (target / "config.json").write_text(json.dumps(config))
    return target


def attention(w, name, query, keys):
    """Multi-head attention of one query a tile, written out: [N, D], [N, P, D] to [N, D]."""
    weight, bias = w[f"{name}.in_proj_weight"], w[f"{name}.in_proj_bias"]
    q = query @ weight[:D].T + bias[:D]
    k = keys @ weight[D : 2 * D].T + bias[D : 2 * D]
    v = keys @ weight[2 * D :].T + bias[2 * D :]
    out = torch.empty_like(q)
    size = D // HEADS
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        scores = torch.einsum("nd,npd->np", q[:, part], k[..., part]) / size**0.5
        out[:, part] = torch.einsum("np,npd->nd", scores.softmax(-1), v[..., part])
    return out @ w[f"{name}.out_proj.weight"].T + w[f"{name}.out_proj.bias"]


def norm(w, name, x):
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def described_probability(w, patches):
    """P(compress) as the released network's description gives it, from the stored names."""
    pool = "pooling_before_gating"
    query = w[f"{pool}.query_token"].expand(len(patches), -1)
    pooled = norm(w, f"{pool}.norm1", attention(w, f"{pool}.attn1", query, patches))
    for _ in range(3):
        pooled = norm(w, f"{pool}.norm2", attention(w, f"{pool}.attn2", pooled, patches))
    for number in range(1, 5):
        block = f"gating.block{number}"
        inner = linear(w, f"{block}.3", functional.gelu(linear(w, f"{block}.0", pooled)))
        pooled = pooled + norm(w, f"{block}.5", inner)
    return linear(w, "gating.gate.1", norm(w, "gating.gate.0", pooled)).softmax(-1)[:, 0]


def described_rows(w, patches):
    x = pixel_unshuffle(patches.reshape(len(patches), 8, 8, D), 0.25).flatten(1, 2)
    x = functional.gelu(linear(w, "mlp2.1", norm(w, "mlp2.0", x)))
    return linear(w, "mlp2.7", functional.gelu(linear(w, "mlp2.4", x)))


def test_a_released_checkpoint_routes_as_its_description_says(released):
    network, stored = load_network(released), load_file(released / SINGLE)
    generator = torch.Generator().manual_seed(2)
    patches = torch.randn(6, 64, D, generator=generator) + 3 * torch.randn(6, 1, D, generator=generator)
    with torch.inference_mode():
        ours, rows = network.compress_probabilities(patches), network.project(patches, torch.ones(6, dtype=torch.bool))
    expected = described_probability(stored, patches)
    assert expected.std() > 0.02, "equal probabilities would show nothing"
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rows, described_rows(stored, patches).flatten(0, 1), atol=1e-3, rtol=1e-4)


def test_the_unused_attentions_change_nothing_and_are_kept(released, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(released, changed)
    tensors = load_file(changed / SINGLE)
    unused = [name for name in tensors if any(f"pooling_before_gating.{kind}" in name for kind in UNUSED)]
    assert len(unused) == 2 * 4 + 2 * 2
    for name in unused:
        tensors[name] = tensors[name] + 1
    save_file(tensors, changed / SINGLE, metadata={"format": "pt"})
    patches = torch.randn(3, 64, D)
    with torch.inference_mode():
        first, second = (load_network(path).compress_probabilities(patches) for path in (released, changed))
    assert torch.equal(first, second)
    save_network(load_network(changed), load_processor(changed), tmp_path / "saved")
    convert(tmp_path / "saved", tmp_path / "original", "original")
    again = load_file(tmp_path / "original" / SINGLE)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


UNUSED = ("attn3", "attn4", "norm3", "norm4")


def test_a_pooled_second_projector_gives_the_firsts_rows_where_patches_repeat(tiny_model, tokenizer):
    network, _ = random_flash_model(tokenizer)
    from model.flash.projectors import start_pooled

    start_pooled(network.compressed_projector, network.multi_modal_projector, 2)
    block = torch.randn(3, 2, 2, D).repeat(1, 4, 4, 1).reshape(3, 64, D)  # all neighbourhoods of 2 x 2 are equal
    with torch.inference_mode():
        full = network.project(block).reshape(3, 16, -1)
        small = network.project(block, torch.ones(3, dtype=torch.bool)).reshape(3, 4, -1)
    torch.testing.assert_close(small, full[:, :4], atol=1e-4, rtol=1e-4)


def test_a_downsampled_second_projector_gives_the_firsts_rows_of_the_picture_half_as_large(tokenizer):
    from model.flash.projectors import start_downsampled

    network, _ = random_flash_model(tokenizer)
    start_downsampled(network.compressed_projector, network.multi_modal_projector, 2)
    small = torch.randn(3, 8, 8, D)
    large = small.repeat_interleave(2, 1).repeat_interleave(2, 2)  # 16 x 16 patches in blocks of 2 x 2
    with torch.inference_mode():
        wanted = network.project(small.reshape(3, 64, D))
        found = network.project(large.reshape(3, 256, D), torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_the_same_seed_gives_the_same_router_and_leaves_the_random_numbers_alone(tokenizer):
    from tests.tiny import random_model

    made = []
    for _ in range(2):
        network, _ = random_model(tokenizer)
        torch.manual_seed(len(made))
        before = torch.random.get_rng_state()
        network.add_flash(7, "random")
        assert torch.equal(torch.random.get_rng_state(), before)
        made.append(network)
    first, second = (network.state_dict() for network in made)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert made[0].decision is None
    with pytest.raises(InputError, match="has a router already"):
        made[0].add_flash(7)


def test_routing_without_a_router_is_refused_and_full_resolution_is_not(tiny_directory, tmp_path):
    from model.flash.decisions import Decision

    network = load_network(tiny_directory)
    with pytest.raises(InputError, match="has no router"):
        network.route_by(Decision())
    broken = tmp_path / "broken"
    shutil.copytree(tiny_directory, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"flash_mode": True}))
    with pytest.raises(InputError, match=r"config\.json: flash_mode asks for routing.*set flash_mode to false"):
        load_network(broken)
    (broken / "config.json").write_text(json.dumps(config | {"flash_mode": False}))
    assert load_network(broken).decision is None


def test_the_decision_is_saved_with_the_network(tokenizer, tmp_path):
    from model.flash.decisions import Decision

    for decision in (Decision("relative", 0.25, 0.5), Decision("budget", token_budget=40), None):
        network, processor = random_flash_model(tokenizer)
        network.route_by(decision)
        save_network(network, processor, tmp_path / "saved")
        assert load_network(tmp_path / "saved").decision == decision
        convert(tmp_path / "saved", tmp_path / "original", "original")
        assert load_network(tmp_path / "original").decision == decision
        shutil.rmtree(tmp_path / "original")
    assert (tmp_path / "saved" / FLASH_SHARD).is_file()


def test_a_router_that_lacks_a_tensor_is_refused_by_name(released, tmp_path):
    shutil.copytree(released, tmp_path / "broken")
    tensors = load_file(tmp_path / "broken" / SINGLE)
    del tensors["gating.gate.1.bias"]
    save_file(tensors, tmp_path / "broken" / SINGLE, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 names differ, first router\.gating\.gate\.1\.bias"):
        load_network(tmp_path / "broken")


def test_stock_transformers_opens_a_directory_that_states_a_decision(tokenizer, tmp_path):
    from transformers import AutoModelForImageTextToText

    from model.flash.decisions import Decision

    save_network(*random_flash_model(tokenizer, Decision("budget", token_budget=40)), tmp_path / "saved")
    stock, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "mismatched_keys", "unexpected_keys")), report
    assert stock.config.flash_token_budget == 40


@pytest.mark.parametrize(("width", "heads", "expected"), [(1024, 16, 16), (3200, 25, 16), (64, 2, 16), (72, 4, 4)])
def test_a_router_has_the_released_number_of_heads_or_the_towers(width, heads, expected):
    from types import SimpleNamespace

    from model.flash.router import router_heads

    vision = SimpleNamespace(hidden_size=width, num_attention_heads=heads)
    assert router_heads(SimpleNamespace(vision_config=vision)) == expected
