"""Fine-tuning of the Qwen-VLs through the one loop: mixed rows in packs, and adapters."""

import numpy as np
import pytest
import torch

from model.families.generation import answer_rows
from model.families.opening import load_network, save_network
from model.training.attention import use_varlen_attention
from model.training.batches import pack, pad
from model.training.config import LoraConfig, PackingConfig, TrainingConfig
from model.training.loop import supervised_loss, supervised_stage, train
from model.training.lora import adapter_layers, merge_lora
from tests.model.families.test_qwen_network import alone, samples, states
from tests.tiny_qwen import mixed_row

ANSWERS = {"": "none", "i": "one", "ii": "two", "v": "clip", "ivi": "three"}
PACKING = PackingConfig(max_tokens=512, max_units=128)
EVERYWHERE = LoraConfig(rank=4, targets=("language", "vision", "projector"))


def rows():
    """Text alone, an image, two images, a clip, a clip between images; each with its own answer."""
    rng = np.random.default_rng(0)
    return [mixed_row(f"row-{i}", rng, kinds, answer) for i, (kinds, answer) in enumerate(ANSWERS.items())]


def run(network, processor, state_dir, **changes):
    """Losses of every step."""
    settings = {"learning_rate": 8e-3, "steps": 16, "batch_size": 1, "packing": PACKING, "weight_decay": 0.0}
    settings |= {"precision": "float32", "threads": 1, "log_every": 1, "checkpoint_every": 100}
    config = TrainingConfig(**settings | changes)
    state = train(network, processor, rows(), supervised_stage("sft", config), config, state_dir, lambda *_: None)
    return [record["loss"] for record in state.history]


def test_fine_tuning_learns_packs_of_mixed_rows(qwen, tmp_path):
    network = load_network(qwen.directory)
    losses = run(network, qwen.processor, tmp_path / "state")
    assert losses[-1] < 0.2 * losses[0]
    save_network(network, qwen.processor, tmp_path / "model")
    saved = load_network(tmp_path / "model")
    learned = answer_rows(saved, qwen.processor, rows(), max_new_tokens=8)
    assert sum(map(str.__eq__, learned, ANSWERS.values())) >= 3
    assert learned == answer_rows(network, qwen.processor, rows(), max_new_tokens=8)


def test_padded_rows_in_bfloat16_with_activations_computed_again_learn_too(qwen, tmp_path):
    network = load_network(qwen.directory)
    changes = {"packing": None, "batch_size": 5, "precision": "bfloat16", "activation_checkpointing": "all"}
    losses = run(network, qwen.processor, tmp_path, steps=3, **changes)
    assert losses[-1] < losses[0]


def test_a_pack_has_the_loss_and_the_gradients_of_padded_rows(qwen):
    given = [qwen.processor.sample(row) for row in rows()]
    network = qwen.network

    def gradients(batch):
        network.zero_grad()
        loss = supervised_loss(network, batch, float(batch.weights.sum()))
        loss.backward()
        return loss.item(), [p.grad.clone() for p in network.parameters()]

    expected_loss, expected = gradients(pad(given, "square", 0))
    with use_varlen_attention(*network.parts().language):
        loss, found = gradients(pack(given, "square"))
    network.zero_grad()
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_adapters_train_alone_and_merge(qwen, tmp_path):
    network = load_network(qwen.directory)
    losses = run(network, qwen.processor, tmp_path, steps=3, lora=EVERYWHERE)
    assert losses[-1] < losses[0]
    names = [name for name, _ in adapter_layers(network)]
    for place in ("model.visual.blocks.0.attn.qkv", "model.visual.merger.", "model.language_model.layers.0.self_attn."):
        assert any(name.startswith(place) for name in names)
    assert not any("lm_head" in name for name in names)
    sample = samples(qwen)[2]
    expected = states(network, alone(sample))
    assert not torch.allclose(expected, states(qwen.network, alone(sample)), atol=1e-3)
    merge_lora(network)
    torch.testing.assert_close(states(network, alone(sample)), expected, rtol=0, atol=1e-4)
    assert network.state_dict().keys() == qwen.network.state_dict().keys()
