"""LoRA through peft: every family, every target; peft over transformers' own classes is the oracle."""

import copy
import functools
import json
import re
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText

from model.data.errors import InputError
from model.families.interface import Inputs, Processor
from model.families.opening import load_network, load_processor
from model.flash.checkpoint import save_model
from model.flash.network import normalise
from model.training.config import LoraConfig, PackingConfig, TrainingConfig
from model.training.loop import supervised_stage, train
from model.training.lora import (
    BASE,
    CONFIG,
    WEIGHTS,
    add_lora,
    load_adapter,
    merge_lora,
    remove_lora,
    save_adapter,
    unmerge_lora,
)
from model.training.memory import checkpoint_activations
from tests.tiny import TILE, byte_tokenizer, picture, question_row, random_model
from tests.tiny_qwen import GENERATIONS, save_stock, stock_network, stock_processor

torch.set_num_threads(1)
EXPERTS = {
    "internvl-qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "internvl-gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
}
FAMILIES = ("internvl", *EXPERTS, *GENERATIONS)
ATTENTION = r"self_attn\.[qkvo]_proj\.weight"
DENSE, MIXTURE = r"mlp\.(gate|up|down)_proj\.weight", r"mlp\.experts\.(gate_up|down)_proj"
TOWERS = {
    "internvl": r"vision_tower\.encoder\.layer\.\d+\.(attention\.([qkv]_proj|projection_layer)|mlp\.fc[12])\.weight",
    "qwen2_vl": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])\.weight",
    "qwen2_5_vl": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)\.weight",
    "qwen3_vl": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])\.weight",
}
PROJECTORS = {
    "internvl": r"multi_modal_projector\.linear_[12]\.weight",
    "qwen2_vl": r"model\.visual\.merger\.mlp\.[02]\.weight",
    "qwen2_5_vl": r"model\.visual\.merger\.mlp\.[02]\.weight",
    "qwen3_vl": r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]\.weight",
}
ALL = ("language", "vision", "projector")


def adapted_weights(family: str, target: str) -> str:
    """Pattern of the weights that ``target`` adapts, as the documentation names them."""
    if target == "language":
        layers = r"language_model\.model\.layers" if family.startswith("internvl") else r"model\.language_model\.layers"
        return rf"{layers}\.\d+\.({ATTENTION}|{MIXTURE if 'moe' in family or 'oss' in family else DENSE})"
    base = family.partition("-")[0].removesuffix("_moe")
    return {"vision": TOWERS, "projector": PROJECTORS}[target][base]


@functools.cache
def _built(family: str) -> nn.Module:
    if family.startswith("internvl"):
        kind = family.partition("-")[2]
        language = {"model_type": kind, "extra": EXPERTS[family]} if kind else {}
        return random_model(byte_tokenizer(), **language)[0]
    with tempfile.TemporaryDirectory() as directory:
        save_stock(family, Path(directory))
        return load_network(Path(directory))


@functools.cache
def _processor(family: str) -> Processor:
    with tempfile.TemporaryDirectory() as directory:
        stock_processor(family).save_pretrained(directory)
        _built(family).config.save_pretrained(directory)
        return load_processor(Path(directory))


def network_of(family: str) -> nn.Module:
    return copy.deepcopy(_built(family))


def inputs_of(network: nn.Module) -> Inputs:
    """Two rows, the first with one image of 16 tokens."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 200, (2, 24), generator=generator)
    ids[0, 2:18] = network.config.image_token_id
    mask = torch.ones_like(ids)
    keep = torch.arange(ids.numel())
    if hasattr(network, "multi_modal_projector"):
        tiles = torch.randint(0, 256, (1, TILE, TILE, 3), generator=generator, dtype=torch.uint8)
        return Inputs(ids, mask, None, None, {"tiles": tiles}, False, keep)
    vision = network.config.vision_config
    grid = torch.tensor([[1, 8, 8]])
    patches = torch.randn(64, 3 * vision.temporal_patch_size * vision.patch_size**2, generator=generator)
    positions = torch.arange(24).expand(3, 2, 24)
    return Inputs(ids, mask, positions, None, {"patches": patches, "grids": grid}, False, keep)


def logits(network: nn.Module) -> torch.Tensor:
    inputs = inputs_of(network)
    return network.head(network.hidden(inputs).states)


def stock_logits(stock: nn.Module, inputs: Inputs) -> torch.Tensor:
    if "tiles" in inputs.media:
        media = {"pixel_values": normalise(inputs.media["tiles"])}
    else:
        kinds = (inputs.ids == stock.config.image_token_id).int()
        media = {"pixel_values": inputs.media["patches"], "image_grid_thw": inputs.media["grids"]}
        media |= {"position_ids": inputs.positions, "mm_token_type_ids": kinds}
    return stock(input_ids=inputs.ids, attention_mask=inputs.mask, **media).logits.flatten(0, 1)


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def adapters(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if "lora_" in name}


def stir(network: nn.Module) -> None:
    """Give the adapter values as after training."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in adapters(network).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def with_adapter(family: str, targets=ALL) -> nn.Module:
    network = network_of(family)
    add_lora(network, LoraConfig(targets=targets, rank=4, alpha=6))
    stir(network)
    return network


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_adapter_changes_nothing_bit_for_bit(family):
    network = network_of(family)
    before, modules = weights_of(network), [name for name, _ in network.named_modules()]
    with torch.no_grad():
        plain = logits(network)
        add_lora(network, LoraConfig(targets=ALL))
        assert torch.equal(logits(network), plain)
    merge_lora(network)
    assert [name for name, _ in network.named_modules()] == modules
    assert all(p.requires_grad for p in network.parameters())
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def trains_exactly(family: str, targets: tuple[str, ...]) -> None:
    """One step of SGD; the weights that differ after merging are those of the documented layers, all of them."""
    network = network_of(family)
    before = weights_of(network)
    add_lora(network, LoraConfig(targets=targets))
    network.train()
    logits(network).logsumexp(-1).sum().backward()
    assert {name for name, p in network.named_parameters() if p.grad is not None} == adapters(network).keys()
    assert {name for name, p in network.named_parameters() if p.requires_grad} == adapters(network).keys()
    torch.optim.SGD(adapters(network).values(), lr=0.1).step()
    merge_lora(network)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    pattern = "|".join(adapted_weights(family, target) for target in targets)
    assert changed == {name for name in before if re.fullmatch(pattern, name)}


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_target_trains_its_part_and_no_other(family, target):
    trains_exactly(family, (target,))


@pytest.mark.parametrize("targets", [pair for size in (2, 3) for pair in combinations(ALL, size)])
def test_targets_add_up(targets):
    trains_exactly("internvl", targets)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_over_transformers_own_class_computes_and_merges_the_same(family, tmp_path):
    network = with_adapter(family)
    save_adapter(network, tmp_path / "adapter", base_sha256="b" * 64)
    if family.startswith("internvl"):
        _, processor = random_model(byte_tokenizer())
        save_model(_built(family), processor, tmp_path / "base")
        stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "base", dtype=torch.float32)
    else:
        stock = stock_network(family)
    opened = PeftModel.from_pretrained(stock, tmp_path / "adapter")
    with torch.no_grad():
        ours = logits(network)
        torch.testing.assert_close(stock_logits(opened, inputs_of(network)), ours, rtol=1e-5, atol=1e-5)
        merge_lora(network)
        # Sums in another order: four roundings of values near 5.
        torch.testing.assert_close(logits(network), ours, rtol=1e-4, atol=1e-4)
    theirs = opened.merge_and_unload().state_dict()
    for name, tensor in network.state_dict().items():
        stock_name = name.replace("language_model.model.", "model.language_model.")
        if family.startswith("internvl"):
            stock_name = re.sub(r"^(vision_tower|multi_modal_projector)\.", r"model.\1.", stock_name)
            stock_name = stock_name.replace("language_model.lm_head", "lm_head")
        assert torch.equal(theirs[stock_name], tensor), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_adapter_merges_to_the_same_bits_and_unmerges_within_two_roundings(family, tmp_path):
    network, trained = network_of(family), with_adapter(family)
    save_adapter(trained, tmp_path, base_sha256="b" * 64)
    merge_lora(trained)
    before = weights_of(network)
    load_adapter(network, tmp_path, base_sha256="b" * 64)
    merge_lora(network)
    merged = weights_of(network)
    assert all(torch.equal(merged[name], tensor) for name, tensor in trained.state_dict().items())
    load_adapter(network, tmp_path, base_sha256=None)
    unmerge_lora(network)
    for name, tensor in network.state_dict().items():
        assert ((tensor - before[name]).abs() <= 2**-24 * (merged[name].abs() + tensor.abs())).all(), name


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-6, 1e6))
def test_two_roundings_bound_what_unmerging_loses(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(64, generator=generator)
    delta = torch.randn(64, generator=generator) * scale
    merged = weight + delta
    back = merged - delta
    assert ((back - weight).abs() <= 2**-24 * (merged.abs() + back.abs())).all()


@pytest.mark.parametrize("family", ["internvl", "internvl-qwen3_moe", "qwen2_5_vl"])
def test_checkpointed_activations_give_the_same_gradients(family):
    def gradients(choice: str) -> dict[str, torch.Tensor]:
        network = with_adapter(family)
        network.train()
        checkpoint_activations(network.parts(), choice)
        logits(network).logsumexp(-1).sum().backward()
        return {name: p.grad for name, p in adapters(network).items()}

    kept = gradients("none")
    for name, gradient in gradients("language").items():
        torch.testing.assert_close(gradient, kept[name])


def test_the_seed_decides_the_adapter_and_leaves_the_random_state_alone():
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        network = network_of("internvl")
        add_lora(network, LoraConfig(), seed)
        return {name: p.detach() for name, p in adapters(network).items() if "lora_A" in name}

    state = torch.get_rng_state()
    first, again, other = drawn(1), drawn(1), drawn(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name]) for name in first)


def test_the_same_adapter_gives_the_same_bytes_and_names_its_base(tmp_path):
    for name in "ab":
        save_adapter(with_adapter("internvl"), tmp_path / name, base_sha256="b" * 64, base_name="base")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted([CONFIG, WEIGHTS, BASE])
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert json.loads((tmp_path / "a" / BASE).read_text()) == {"name": "base", "sha256": "b" * 64}


def test_dropout_acts_in_training_and_is_refused_for_experts():
    network = network_of("internvl")
    add_lora(network, LoraConfig(dropout=0.5))
    stir(network)
    with torch.no_grad():
        assert torch.equal(logits(network), logits(network))
        network.train()
        assert not torch.equal(logits(network), logits(network))
    with pytest.raises(InputError, match=r"lora\.dropout: must be 0 for a mixture of experts"):
        add_lora(network_of("qwen3_vl_moe"), LoraConfig(dropout=0.5))


@pytest.mark.parametrize("family", ["internvl", "qwen3_vl_moe"])
def test_a_stopped_run_continues_with_the_same_adapter_and_never_moves_the_base(family, tmp_path):
    rng = np.random.default_rng(3)
    rows = [question_row(f"r{i}", [picture(rng)] * (i % 2), "!" * (1 + i % 3)) for i in range(8)]
    processor = random_model(byte_tokenizer())[1] if family == "internvl" else _processor(family)
    config = TrainingConfig(
        learning_rate=1e-2,
        steps=4,
        batch_size=2,
        packing=PackingConfig(max_tokens=300, max_units=40),
        drop_path_rate=0.2 if family == "internvl" else 0.0,
        activation_checkpointing="all",
        checkpoint_every=2,
        threads=1,
        lora=LoraConfig(targets=ALL),
    )

    def trained(state_dir: Path, stop_at: int | None = None) -> nn.Module:
        def progress(_label: str, done: int, _total: int) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        network = network_of(family)
        train(network, processor, rows, supervised_stage("sft", config), config, state_dir, progress)
        return network

    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped", stop_at=3)
    resumed = adapters(trained(tmp_path / "stopped"))
    assert all(torch.equal(p, resumed[name]) for name, p in adapters(whole).items())
    assert all(p.any() for name, p in resumed.items() if "lora_B" in name)
    kept = {name for part in tmp_path.glob("whole/*/*.safetensors") for name in load_file(part)}
    assert kept
    assert all("lora_" in name for name in kept)
    before = _built(family).state_dict()
    remove_lora(whole)
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.state_dict().items())


def changed_config(directory: Path, **changes) -> None:
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def first_tensor(directory: Path, change) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors, min(tensors))
    save_file(tensors, directory / WEIGHTS)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: changed_config(d, use_dora=True), "use_dora is True; only plain LoRA"),
        (lambda d: changed_config(d, r=0), "r must be a whole number above zero"),
        (lambda d: changed_config(d, r=2.5), "r must be a whole number above zero"),
        (lambda d: changed_config(d, lora_alpha="8"), "lora_alpha must be a number above zero"),
        (lambda d: changed_config(d, r=8), r"lora_A\.weight is \[4, 64\], not \[8, 64\]"),
        (lambda d: changed_config(d, target_modules="all-linear"), "must be a list of full names"),
        (lambda d: changed_config(d, target_parameters=[3]), "must be a list of full names"),
        (
            lambda d: changed_config(d, target_modules=["model.language_model.norm"]),
            f"{CONFIG}: Target module .*Norm.* is not supported",
        ),
        (
            lambda d: changed_config(d, target_modules=["model.other"]),
            "no module model.other; the adapter is of another",
        ),
        (lambda d: first_tensor(d, lambda tensors, name: tensors.pop(name)), "is missing"),
        (lambda d: first_tensor(d, lambda tensors, name: tensors.update(b=tensors[name].clone())), "b is unknown"),
        (lambda d: (d / WEIGHTS).write_bytes(b"no"), WEIGHTS),
        (lambda d: (d / BASE).unlink(), "no such file"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_leaves_the_network_alone(spoil, message, tmp_path):
    save_adapter(with_adapter("internvl", ("language",)), tmp_path, base_sha256="b" * 64)
    spoil(tmp_path)
    network = network_of("internvl")
    names = list(network.state_dict())
    with pytest.raises(InputError, match=message):
        load_adapter(network, tmp_path, base_sha256="b" * 64)
    assert list(network.state_dict()) == names


def test_an_adapter_of_another_base_is_refused(tmp_path):
    save_adapter(with_adapter("internvl"), tmp_path, base_sha256="a" * 64)
    with pytest.raises(InputError, match="of the base aaaaaaaaaaaa, not of bbbbbbbbbbbb"):
        load_adapter(network_of("internvl"), tmp_path, base_sha256="b" * 64)


def test_weights_that_are_not_finite_are_not_merged():
    network = with_adapter("internvl")
    with torch.no_grad():
        next(iter(adapters(network).values())).fill_(float("inf"))
    with pytest.raises(InputError, match="not finite"):
        merge_lora(network)
