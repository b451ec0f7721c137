"""The nine published sizes, from their profiles: number of parameters (on no device), ties, towers, experts."""

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models

from model.flash.build import transformers_config
from model.flash.images import Tiling
from model.flash.network import FlashModel
from pipelines.profile import load_profile
from tests.tiny import SPECIAL

# InternVL3.5, table 1, in 10^9: vision, language, all.
TABLE_1 = {
    "1b": (0.3, 0.8, 1.1),
    "2b": (0.3, 2.0, 2.3),
    "4b": (0.3, 4.4, 4.7),
    "8b": (0.3, 8.2, 8.5),
    "14b": (0.3, 14.8, 15.1),
    "38b": (5.5, 32.8, 38.4),
    "20b_a4b": (0.3, 20.9, 21.2),
    "30b_a3b": (0.3, 30.5, 30.8),
    "241b_a28b": (5.5, 235.1, 240.7),
}
TIED = {"1b", "2b", "4b"}


@pytest.fixture(scope="module")
def words():
    tokenizer = Tokenizer(models.BPE(vocab={"!": 0}, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def config_of(size, tokenizer):
    return transformers_config(load_profile(f"internvl3_5_{size}").pretrain.model, tokenizer)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("size", TABLE_1)
def test_the_network_has_the_published_number_of_parameters(size, words):
    config = config_of(size, words)
    with torch.device("meta"):
        network = FlashModel(config, Tiling())
    language = count(network.language_model)
    if size in TIED:
        # The table counts the output head by itself where it is the embedding too.
        language += network.language_model.lm_head.weight.numel()
    vision, whole = count(network.vision_tower), language + count(network.vision_tower)
    whole += count(network.multi_modal_projector)
    expected = TABLE_1[size]
    for found, published in zip((vision, language, whole), expected, strict=True):
        assert found / 1e9 == pytest.approx(published, abs=0.06)


@pytest.mark.parametrize("size", TABLE_1)
def test_embeddings_are_tied_up_to_4b_and_nowhere_else(size, words):
    config = config_of(size, words)
    assert config.tie_word_embeddings == config.text_config.tie_word_embeddings == (size in TIED)


@pytest.mark.parametrize("size", TABLE_1)
def test_the_tower_is_the_published_one(size, words):
    vision = config_of(size, words).vision_config
    large = size in ("38b", "241b_a28b")
    shape = (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads, vision.intermediate_size)
    assert shape == ((3200, 45, 25, 12800) if large else (1024, 24, 16, 4096))
    assert vision.norm_type == ("rms_norm" if large else "layer_norm")
    assert (vision.use_qk_norm, vision.attention_bias) == (large, not large)
    assert vision.layer_norm_eps == 1e-6


def test_the_mixtures_have_the_published_experts(words):
    for size, experts, chosen in (("20b_a4b", 32, 4), ("30b_a3b", 128, 8), ("241b_a28b", 128, 8)):
        text = config_of(size, words).text_config
        assert (text.num_experts, text.num_experts_per_tok) == (experts, chosen)
    # The released code balances the experts of GPT-OSS only.
    coefficients = [config_of(size, words).text_config.router_aux_loss_coef for size in TABLE_1 if "_a" in size]
    assert coefficients == [0.001, 0.0, 0.0]


def test_gpt_oss_scales_its_positions_as_transformers_does_by_default(words):
    from transformers import GptOssConfig

    text, default = config_of("20b_a4b", words).text_config, GptOssConfig()
    assert text.rope_parameters == default.rope_parameters | {"rope_theta": 150000.0}
    assert text.layer_types == default.layer_types[:24]
    assert (text.sliding_window, text.head_dim, text.vocab_size) == (128, 64, 201088)
