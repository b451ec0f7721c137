"""Builders of tiny random Qwen-VL directories, written by transformers as the published ones are."""

from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from model.data.schema import image_media
from tests.tiny import encoded, question_row

GENERATIONS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
_CHAT_TEMPLATE = """{%- if messages[0].role != 'system' and __system__ %}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{- message.content }}{% else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- else %}{{- part.text }}{% endif %}{% endfor %}{% endif %}
{{- '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""


def qwen_tokenizer() -> Tokenizer:
    """One token a byte, and the special tokens of the Qwen-VLs."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def chat_template(generation: str) -> str:
    """Qwen2-VL and Qwen2.5-VL open with a default system turn, Qwen3-VL does not."""
    return _CHAT_TEMPLATE.replace("__system__", "false" if generation.startswith("qwen3") else "true").replace("\n", "")


def _text_config(generation: str, **changes) -> dict:
    shape = {
        "vocab_size": qwen_tokenizer().get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": qwen_tokenizer().token_to_id("<|im_end|>"),
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if generation.startswith("qwen3"):
        shape |= {"head_dim": 16, "rope_parameters": rope | {"mrope_section": [4, 2, 2], "mrope_interleaved": True}}
    else:
        shape |= {"rope_parameters": rope | {"mrope_section": [2, 3, 3]}}
    if generation == "qwen3_vl_moe":
        shape |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    return shape | changes


def _vision_config(generation: str) -> dict:
    shape = {"depth": 3, "num_heads": 2, "temporal_patch_size": 2, "spatial_merge_size": 2}
    if generation == "qwen2_vl":
        return shape | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "patch_size": 14}
    shape |= {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64}
    if generation == "qwen2_5_vl":
        return shape | {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    return shape | {"patch_size": 16, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1]}


def stock_classes(generation: str) -> tuple[type, type, type, type]:
    """transformers' (configuration, network, processor, video processor) of a generation."""
    import transformers as hf

    return {
        "qwen2_vl": (
            hf.Qwen2VLConfig,
            hf.Qwen2VLForConditionalGeneration,
            hf.Qwen2VLProcessor,
            hf.Qwen2VLVideoProcessor,
        ),
        "qwen2_5_vl": (
            hf.Qwen2_5_VLConfig,
            hf.Qwen2_5_VLForConditionalGeneration,
            hf.Qwen2_5_VLProcessor,
            hf.Qwen2VLVideoProcessor,
        ),
        "qwen3_vl": (
            hf.Qwen3VLConfig,
            hf.Qwen3VLForConditionalGeneration,
            hf.Qwen3VLProcessor,
            hf.Qwen3VLVideoProcessor,
        ),
        "qwen3_vl_moe": (
            hf.Qwen3VLMoeConfig,
            hf.Qwen3VLMoeForConditionalGeneration,
            hf.Qwen3VLProcessor,
            hf.Qwen3VLVideoProcessor,
        ),
    }[generation]


def stock_network(generation: str, *, tie: bool = False, seed: int = 0, **text):
    """transformers' own network, its weights large enough for answers to depend on the input."""
    import torch

    config_class, network_class, _, _ = stock_classes(generation)
    tokenizer = qwen_tokenizer()
    config = config_class(
        text_config=_text_config(generation, **text) | {"tie_word_embeddings": tie},
        vision_config=_vision_config(generation),
        image_token_id=tokenizer.token_to_id("<|image_pad|>"),
        video_token_id=tokenizer.token_to_id("<|video_pad|>"),
        vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
        vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"),
        tie_word_embeddings=tie,
    )
    torch.manual_seed(seed)
    network = network_class(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.12)
    return network.eval()


def stock_processor(generation: str):
    """transformers' own processor: images of 4 to 64 tokens, videos of at most 64 tokens a frame."""
    from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor

    _, _, processor_class, video_class = stock_classes(generation)
    patch = 16 if generation.startswith("qwen3") else 14
    cell = (2 * patch) ** 2
    shape = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2}
    if generation.startswith("qwen3"):
        # What these checkpoints were trained with; the classes' defaults are those of Qwen2-VL.
        shape |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    budget = {"shortest_edge": 4 * cell, "longest_edge": 64 * cell}
    video = {"shortest_edge": 8 * cell, "longest_edge": 256 * cell} if generation.startswith("qwen3") else budget
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=qwen_tokenizer(),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    return processor_class(
        Qwen2VLImageProcessor(size=budget, **shape),
        tokenizer,
        video_class(size=video, **shape),
        chat_template=chat_template(generation),
    )


def save_stock(generation: str, directory: Path, **options):
    """A complete directory as transformers writes it; returns the stock network it holds."""
    network = stock_network(generation, **options)
    network.save_pretrained(directory)
    stock_processor(generation).save_pretrained(directory)
    return network


def pixels(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Noise, uint8 [height, width, 3]."""
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def clip(rng: np.random.Generator, frames: int, width: int, height: int, fps: float = 2.0):
    """A clip of noise as the processor takes it."""
    from model.data.video import Video

    images = [Image.fromarray(pixels(rng, width, height)) for _ in range(frames)]
    return Video(images, [index / fps for index in range(frames)], fps)


def clip_medium(rng: np.random.Generator, frames: int, width: int, height: int, fps: float = 2.0) -> dict:
    """A clip of noise as a row holds it."""
    first, *others = (Image.fromarray(pixels(rng, width, height)) for _ in range(frames))
    options = {"save_all": True, "append_images": others, "duration": round(1000 / fps), "lossless": True}
    medium = image_media(encoded(first, "WEBP", **options), image_format="WEBP", width=width, height=height)
    return medium | {"kind": "video", "start": 0.0, "end": frames / fps, "fps": fps}


def mixed_row(row_id: str, rng: np.random.Generator, kinds: str, answer: str, question: str = "What?") -> dict:
    """A row about an image for each "i" and a clip for each "v" of ``kinds``."""
    row = question_row(row_id, [], answer, question)
    for kind in kinds:
        if kind == "i":
            image = Image.fromarray(pixels(rng, 90, 60))
            medium = image_media(encoded(image), image_format="PNG", width=90, height=60)
        else:
            medium = clip_medium(rng, 4, 60, 60)
        row["media"].append(medium)
    shown = "".join("<image>\n" if kind == "i" else "<video>\n" for kind in kinds)
    row["messages"][0]["content"] = shown + question
    return row
