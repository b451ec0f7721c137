"""Training of every InternVL3.5 architecture: packs against padded rows, and the one loop."""

import numpy as np
import pytest
import torch

from model.training.attention import set_attention, use_varlen_attention
from model.training.batches import pack, pad
from model.training.config import PackingConfig, TrainingConfig
from model.training.loop import supervised_loss, supervised_stage, train
from tests.tiny import picture, question_row
from tests.tiny_internvl import ARCHITECTURES, random_architecture


@pytest.fixture(scope="module")
def rows():
    """One image, three tiles, text alone; each with its own answer."""
    rng = np.random.default_rng(0)
    pictures = [[picture(rng)], [picture(rng, 2, 1)], []]
    return [question_row(f"row-{i}", images, "abc"[i]) for i, images in enumerate(pictures)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_pack_has_the_loss_and_the_gradients_of_padded_rows(name, rows):
    network, processor = random_architecture(name)
    set_attention(network, "sdpa")
    network.train()
    given = [processor.sample(row) for row in rows]

    def gradients(batch):
        network.zero_grad()
        auxiliary = network.hidden(batch.inputs).auxiliary
        assert (auxiliary is None) == (network.config.text_config.model_type == "qwen3")
        loss = supervised_loss(network, batch, float(batch.weights.sum()))
        loss.backward()
        return loss.item(), [p.grad.clone() for p in network.parameters()]

    expected_loss, expected = gradients(pad(given, "square", processor.eos_token_id))
    with use_varlen_attention(*network.parts().language):
        loss, found = gradients(pack(given, "square"))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["20b, GPT-OSS", "30b, Qwen3 mixture"])
@pytest.mark.parametrize("packing", [None, PackingConfig(max_tokens=512, max_units=16)])
def test_mixtures_learn_under_the_default_attention(name, rows, tmp_path, packing):
    network, processor = random_architecture(name)
    config = TrainingConfig(
        learning_rate=5e-3,
        steps=4,
        batch_size=3 if packing is None else 1,
        packing=packing,
        precision="float32",
        threads=1,
        log_every=1,
        checkpoint_every=100,
    )
    stage = supervised_stage("sft", config)
    history = train(network, processor, rows, stage, config, tmp_path, lambda *_: None).history
    losses = [record["loss"] for record in history]
    assert losses[-1] < 0.7 * losses[0]
