"""A tiny random model, and the three servers running on it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]


def build_tiny(directory: Path, seed: int = 0) -> Path:
    """Write a random model of a few thousand parameters: 28-pixel tiles, 4 rows a tile, context 512."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from model.flash.build import build_model
    from model.flash.checkpoint import save_model
    from model.flash.config import LanguageConfig, ModelConfig, VisionConfig

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["how many digits are in the image", "read the digits"], trainer)
    vision = VisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=28,
        patch_size=7,
    )
    language = LanguageConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    model, processor = build_model(ModelConfig(vision=vision, language=language, max_tiles=4), tokenizer, seed=seed)
    save_model(model, processor, directory)
    return directory


def png(width: int = 40, height: int = 30, seed: int = 0) -> bytes:
    """A random image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("model") / "tiny")
