"""Builders of small real things for tests: a tokenizer, a random network, images, rows."""

import io

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
TILE = 56


def byte_tokenizer() -> Tokenizer:
    """One token a byte; id 0 is "!", a real character that must train."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def harmony_tokenizer() -> Tokenizer:
    """The same, with the turn tokens of GPT-OSS."""
    tokenizer = byte_tokenizer()
    harmony = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in harmony])
    return tokenizer


def tiny_config(**language):
    """Configuration of a network of about 150,000 parameters: 56-pixel tiles of 16 rows."""
    from model.flash.config import LanguageConfig, ModelConfig, VisionConfig

    vision = VisionConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=TILE, patch_size=7
    )
    shape = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "intermediate_size": 128,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    return ModelConfig(vision=vision, language=LanguageConfig(**(shape | language)))


def random_model(tokenizer: Tokenizer, seed: int = 0, **language):
    """(model, processor) whose weights are large enough for answers to depend on the input."""
    import torch

    from model.flash.build import build_model

    model, processor = build_model(tiny_config(**language), tokenizer, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.eval(), processor


def picture(rng: np.random.Generator, columns: int = 1, rows: int = 1) -> Image.Image:
    """Noise that fills a whole grid of tiles."""
    return Image.fromarray(rng.integers(0, 256, (rows * TILE, columns * TILE, 3), dtype=np.uint8))


def encoded(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    """An image's bytes in a file format."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def question_row(row_id: str, images: list[Image.Image], answer: str, question: str = "What?", task: str = "read"):
    """A dataset row about these images."""
    from model.data.schema import image_media, scorer

    media = [image_media(encoded(i), image_format="PNG", width=i.width, height=i.height) for i in images]
    return {
        "id": row_id,
        "source": "test",
        "license": "CC0-1.0",
        "media": media,
        "messages": [
            {"role": "user", "content": "<image>\n" * len(images) + question},
            {"role": "assistant", "content": answer},
        ],
        "task": task,
        "answers": [answer],
        "scorer": scorer("exact"),
    }
