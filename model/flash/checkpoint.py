"""Model directories: one Hugging Face directory, its shards split by half behind one index.

Stock ``AutoModelForImageTextToText`` and vLLM open it as they open any InternVL; each half loads alone.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, InternVLConfig
from transformers.initialization import no_init_weights

from model.data.artifact import file_sha256, write_atomic
from model.data.chat import chat_template
from model.data.errors import InputError
from model.flash.network import FlashModel
from model.flash.processor import IMAGENET_MEAN, IMAGENET_STD, FlashProcessor, load_processor, read_json

__all__ = ["load_model", "load_processor", "save_model", "weights_version"]

VISION_SHARD, LANGUAGE_SHARD = "model-vision.safetensors", "model-language.safetensors"
INDEX = "model.safetensors.index.json"
_VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.")
_LANGUAGE_PREFIXES = ("language_model.",)
_TIED = "language_model.lm_head.weight"


def save_model(model: FlashModel, processor: FlashProcessor, directory: Path) -> None:
    """Write a complete model directory; the same model gives the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop(_TIED, None)
    halves = {VISION_SHARD: _VISION_PREFIXES, LANGUAGE_SHARD: _LANGUAGE_PREFIXES}
    weight_map = {}
    for shard, prefixes in halves.items():
        half = {name: t for name, t in sorted(tensors.items()) if name.startswith(prefixes)}
        save_file(half, directory / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(half, shard)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    _write_json(directory / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    _write_configuration(model, processor, directory)


def _write_configuration(model: FlashModel, processor: FlashProcessor, directory: Path) -> None:
    config = model.config.to_dict() | {
        "architectures": ["InternVLForConditionalGeneration"],
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    config.pop("_name_or_path", None)
    config.pop("_attn_implementation", None)
    _write_json(directory / "config.json", config)
    eos = processor.eos_token_id
    _write_json(
        directory / "generation_config.json",
        GenerationConfig(eos_token_id=eos, pad_token_id=_pad_id(processor), do_sample=False).to_diff_dict(),
    )
    template = chat_template(processor.system_prompt)
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write_json(directory / "fovea.json", {"system_prompt": processor.system_prompt})
    (directory / "tokenizer.json").write_text(processor.tokenizer.to_str(pretty=True), encoding="utf-8")
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(model, processor))
    _write_json(directory / "processor_config.json", _processor_config(processor))


def _pad_id(processor: FlashProcessor) -> int:
    pad = processor.tokenizer.token_to_id("<|endoftext|>")
    return processor.eos_token_id if pad is None else pad


def _tokenizer_config(model: FlashModel, processor: FlashProcessor) -> dict[str, object]:
    pad = processor.tokenizer.id_to_token(_pad_id(processor))
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.config.text_config.max_position_embeddings,
        "padding_side": "left",
        "eos_token": "<|im_end|>",
        "pad_token": pad,
        # transformers' InternVLProcessor and vLLM read these attributes from the tokenizer.
        "extra_special_tokens": {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    }


def _processor_config(processor: FlashProcessor) -> dict[str, object]:
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


def _write_json(path: Path, value: object) -> None:
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def load_model(
    directory: Path,
    part: Literal["all", "vision", "language"] = "all",
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    attention: str = "sdpa",
) -> FlashModel:
    """Load a model directory, or one half of it, in evaluation mode.

    Raises:
        InputError: the directory is missing, incomplete, or not an InternVL.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such model directory")
    processor = load_processor(directory)
    config = load_config(directory, attention)
    prefixes = {
        "all": (*_VISION_PREFIXES, *_LANGUAGE_PREFIXES),
        "vision": _VISION_PREFIXES,
        "language": _LANGUAGE_PREFIXES,
    }
    tensors = _read_tensors(directory, prefixes[part])
    with no_init_weights():
        model = FlashModel(config, processor.tiling, part, weights_version(directory))
    if config.tie_word_embeddings and "language_model.model.embed_tokens.weight" in tensors:
        tensors[_TIED] = tensors["language_model.model.embed_tokens.weight"]
    expected, given = set(model.state_dict()), set(tensors)
    if expected != given:
        odd = sorted(expected ^ given)
        raise InputError(f"{directory}: weights do not fit the configuration: {len(odd)} names differ, first {odd[0]}")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{directory}: weights do not fit the configuration: {str(error).splitlines()[-1].strip()}"
        ) from error
    return model.to(device=device, dtype=dtype).eval()


def load_config(directory: Path, attention: str = "sdpa") -> InternVLConfig:
    """transformers' configuration of a model directory."""
    raw = read_json(directory / "config.json")
    if raw.get("model_type") != "internvl":
        raise InputError(f"{directory / 'config.json'}: model_type is {raw.get('model_type')!r}, not 'internvl'")
    try:
        config = AutoConfig.for_model(**raw)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{directory / 'config.json'}: {str(error).splitlines()[0]}") from error
    for part in (config, config.vision_config, config.text_config):
        part._attn_implementation = attention
    return config


def _read_tensors(directory: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    index = directory / INDEX
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(f"{index}: no weight_map")
        shards = sorted({shard for name, shard in weight_map.items() if name.startswith(prefixes)})
    else:
        shards = ["model.safetensors"]
    tensors = {}
    for shard in shards:
        path = directory / Path(shard).name
        if not path.is_file():
            raise InputError(f"{path}: missing; the model directory is incomplete")
        try:
            with safe_open(path, framework="pt") as stream:
                tensors |= {name: stream.get_tensor(name) for name in stream.keys() if name.startswith(prefixes)}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: broken safetensors file: {error}") from error
    return tensors


def weights_version(directory: Path) -> str:
    """Short hash of the vision half's weights and configuration: features of equal versions are exchangeable."""
    directory = Path(directory)
    index = directory / INDEX
    names = {"model.safetensors"}
    if index.is_file():
        weight_map = read_json(index).get("weight_map", {})
        names = {shard for name, shard in weight_map.items() if name.startswith(_VISION_PREFIXES)}
    digest = sha256()
    for name in sorted({*names, "config.json", "processor_config.json"}):
        path = directory / Path(name).name
        if not path.is_file():
            raise InputError(f"{path}: missing; the model directory is incomplete")
        digest.update(file_sha256(path).encode())
    return digest.hexdigest()[:16]
