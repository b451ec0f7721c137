"""The files of a model directory beside its weights: configuration, tokenizer, chat template, processor."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, GenerationConfig, InternVLConfig

from model.data.artifact import write_atomic
from model.data.chat import chat_template
from model.data.errors import InputError
from model.data.schema import IMG_CONTEXT, IMG_END, IMG_START, VIDEO_PLACEHOLDER
from model.flash.original import huggingface_config
from model.flash.processor import IMAGENET_MEAN, IMAGENET_STD, FlashProcessor, read_json


def load_config(directory: Path, attention: str = "sdpa") -> InternVLConfig:
    """transformers' configuration of a model directory of either layout.

    Raises:
        InputError: missing, broken, or not an InternVL.
    """
    path = directory / "config.json"
    raw = read_json(path)
    layout = raw.get("model_type")
    if layout == "internvl_chat":
        raw = huggingface_config(raw, path)
    if raw.get("model_type") != "internvl":
        raise InputError(f"{path}: model_type is {raw.get('model_type')!r}, not 'internvl'")
    try:
        if layout == "internvl_chat":
            raw["text_config"] = _known_keys(raw["text_config"])
        config = AutoConfig.for_model(**raw)
    except (AttributeError, TypeError, ValueError, KeyError, StrictDataclassError) as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}") from error
    for part in (config, config.vision_config, config.text_config):
        part.dtype = None  # whoever loads the weights chooses it
    if "tie_word_embeddings" not in raw:
        # transformers' default is True; the published sizes from 8B up are untied.
        config.tie_word_embeddings = config.text_config.tie_word_embeddings
    set_config_attention(config, attention)
    return config


@contextmanager
def building(directory: Path) -> Iterator[None]:
    """Build a network of the configuration in ``directory`` inside.

    Raises:
        InputError: transformers cannot, because a value is none that it knows or a size is impossible.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise InputError(f"{directory / 'config.json'}: makes no network: {reason}") from error


def _known_keys(text: dict[str, Any]) -> dict[str, Any]:
    """A language model's configuration without the many keys that transformers 4 wrote of every model."""
    known = set(AutoConfig.for_model(text["model_type"]).to_dict()) | {"rope_theta", "rope_scaling", "num_experts"}
    return {key: value for key, value in text.items() if key in known}


def set_config_attention(config: InternVLConfig, attention: str) -> None:
    """Choose the attention implementation that networks of this configuration are built with."""
    config._attn_implementation = config.vision_config._attn_implementation = attention
    # GPT-OSS has learned sinks in its softmax, which PyTorch's kernel has no place for.
    sinks = config.text_config.model_type == "gpt_oss" and attention == "sdpa"
    config.text_config._attn_implementation = "eager" if sinks else attention


def write_configuration(config: InternVLConfig, dtype: str, processor: FlashProcessor, directory: Path) -> None:
    """Write every file of a model directory in the Hugging Face layout but its weights."""
    whole = config.to_dict() | {"architectures": ["InternVLForConditionalGeneration"], "dtype": dtype}
    whole.pop("_name_or_path", None)
    whole.pop("_attn_implementation", None)
    write_json(directory / "config.json", whole)
    template = chat_template(processor.system_prompt, processor.template)
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_json(directory / "processor_config.json", _processor_config(processor))
    write_tokenizer(config, processor, directory)


def write_tokenizer(config: InternVLConfig, processor: FlashProcessor, directory: Path) -> None:
    """Write the files that both layouts share: tokenizer, generation settings, system prompt."""
    eos = processor.eos_token_id
    write_json(
        directory / "generation_config.json",
        GenerationConfig(eos_token_id=eos, pad_token_id=_pad_id(processor), do_sample=False).to_diff_dict(),
    )
    write_json(directory / "fovea.json", {"system_prompt": processor.system_prompt})
    (directory / "tokenizer.json").write_text(processor.tokenizer.to_str(pretty=True), encoding="utf-8")
    write_json(directory / "tokenizer_config.json", _tokenizer_config(config, processor))


def _pad_id(processor: FlashProcessor) -> int:
    pad = processor.tokenizer.token_to_id("<|endoftext|>")
    return processor.eos_token_id if pad is None else pad


def _tokenizer_config(config: InternVLConfig, processor: FlashProcessor) -> dict[str, Any]:
    pad = processor.tokenizer.id_to_token(_pad_id(processor))
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.text_config.max_position_embeddings,
        "padding_side": "left",
        "eos_token": processor.tokenizer.id_to_token(processor.eos_token_id),
        "pad_token": pad,
        # transformers' InternVLProcessor and vLLM read these attributes from the tokenizer.
        "extra_special_tokens": {
            "start_image_token": IMG_START,
            "end_image_token": IMG_END,
            "context_image_token": IMG_CONTEXT,
            "video_token": VIDEO_PLACEHOLDER,
        },
    }


def _processor_config(processor: FlashProcessor) -> dict[str, Any]:
    tiling = processor.tiling
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": tiling.tile, "width": tiling.tile},
    }
    image = pixels | {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": True,
        "min_patches": tiling.min_tiles,
        "max_patches": tiling.max_tiles,
    }
    return {
        "processor_class": "InternVLProcessor",
        "image_seq_length": processor.rows_per_tile,
        "image_processor": image,
        "video_processor": pixels | {"video_processor_type": "InternVLVideoProcessor"},
    }


def write_json(path: Path, value: object) -> None:
    """Write JSON with sorted keys: equal values give equal bytes."""
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())
