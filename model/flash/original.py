"""config.json of the original layout (``internvl_chat``) and of the Hugging Face layout, each from the other.

Plain dictionaries; imports no torch. The rest of the original layout is in model/flash/layouts.py (names) and
model/flash/conversion.py (directories).
"""

from pathlib import Path
from typing import Any

from model.data.errors import InputError
from model.flash.decisions import FLASH_KEYS
from model.flash.images import Tiling

TEMPLATES = {"chatml": "internvl2_5", "harmony": "internvl3_5_gpt_oss"}
"""The original layout's names of the chat templates."""

# Hugging Face and original names of the vision tower's keys.
_VISION = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "num_channels": "num_channels",
    "hidden_act": "hidden_act",
    "norm_type": "norm_type",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "attention_dropout": "attention_dropout",
    "attention_bias": "qkv_bias",
    "use_qk_norm": "qk_normalization",
    "layer_scale_init_value": "initializer_factor",
    "hidden_dropout_prob": "dropout",
    "image_size": "image_size",
    "patch_size": "patch_size",
}
# What the original configuration's class takes for a key that is missing.
_VISION_DEFAULTS = {"norm_type": "rms_norm", "qkv_bias": False, "qk_normalization": True, "layer_norm_eps": 1e-6}


def rows_per_tile(raw: dict[str, Any]) -> int:
    """Visual tokens of a tile that an original configuration states: (448 / 14 * 0.5) ** 2 for the published sizes."""
    side = _side(raw["force_image_size"] or raw["vision_config"]["image_size"])
    return int(side // _side(raw["vision_config"]["patch_size"]) * raw["downsample_ratio"]) ** 2


def original_tiling(raw: dict[str, Any]) -> Tiling:
    """How the official code cuts images under an original configuration."""
    if not raw.get("dynamic_image_size", True):
        return Tiling(_side(raw["force_image_size"]), 1, 1)
    least, most = raw["min_dynamic_patch"], raw["max_dynamic_patch"]
    return Tiling(_side(raw["force_image_size"]), least, most, raw["use_thumbnail"])


def huggingface_vision_config(raw: dict[str, Any]) -> dict[str, Any]:
    """The Hugging Face form of an original vision tower's configuration."""
    raw = _VISION_DEFAULTS | raw
    vision = {ours: raw[theirs] for ours, theirs in _VISION.items() if theirs in raw}
    # The last hidden state is taken as it is: no final norm.
    return vision | {"model_type": "internvl_vision", "use_mean_pooling": True, "projection_dropout": 0.0}


def huggingface_config(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The Hugging Face form of an original ``config.json``, but for ``image_token_id``, which the tokenizer knows.

    Args:
        raw: the parsed file.
        path: where it lies, for messages.

    Raises:
        InputError: a key is missing, or has a value that no published InternVL3.5 has.
    """
    try:
        if raw.get("select_layer", -1) != -1:
            raise InputError(f"{path}: select_layer is {raw['select_layer']}; only -1, the last, is known here")
        if raw.get("ps_version", "v2") != "v2":
            raise InputError(f"{path}: ps_version is {raw['ps_version']!r}; only 'v2' is known here")
        text = {key: value for key, value in raw["llm_config"].items() if key not in ("architectures", "auto_map")}
        vision = huggingface_vision_config(raw["vision_config"])
        vision["image_size"] = raw["force_image_size"] or vision["image_size"]
        config = {
            "model_type": "internvl",
            "vision_config": vision,
            "text_config": text,
            "image_seq_length": rows_per_tile(raw),
            "downsample_ratio": raw["downsample_ratio"],
            "projector_hidden_act": "gelu",
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
        }
        if "tie_word_embeddings" in text:
            config["tie_word_embeddings"] = text["tie_word_embeddings"]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not an InternVL configuration: {error!r}") from error
    return config | {key: raw[key] for key in FLASH_KEYS if key in raw}


def original_config(
    config: dict[str, Any], *, architecture: str, template: str, min_tiles: int, max_tiles: int, dtype: str
) -> dict[str, Any]:
    """The original form of a Hugging Face configuration.

    The configuration's Python files are not part of it: the official tools bring their own.

    Args:
        config: transformers' ``InternVLConfig`` as a dictionary.
        architecture: class of the language model.
        template: ``chatml`` or ``harmony``.
        min_tiles, max_tiles: bounds of the grid of tiles.
        dtype: of the weights.
    """
    vision = {theirs: config["vision_config"][ours] for ours, theirs in _VISION.items()}
    vision |= {
        "model_type": "intern_vit_6b",  # of both sizes
        "architectures": ["InternVisionModel"],
        "image_size": _side(vision["image_size"]),
        "patch_size": _side(vision["patch_size"]),
        "drop_path_rate": 0.0,
        "torch_dtype": dtype,
    }
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "vision_config": vision,
        "llm_config": _original_text_config(config["text_config"]) | {"architectures": [architecture]},
        "force_image_size": vision["image_size"],
        "downsample_ratio": config["downsample_ratio"],
        "template": TEMPLATES[template],
        "select_layer": -1,
        "ps_version": "v2",
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": min_tiles,
        "max_dynamic_patch": max_tiles,
        "pad2square": False,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "tie_word_embeddings": config["text_config"]["tie_word_embeddings"],
        "torch_dtype": dtype,
    } | {key: config[key] for key in FLASH_KEYS if key in config}


def _original_text_config(text: dict[str, Any]) -> dict[str, Any]:
    """The names that transformers 4 gave the keys of a language model."""
    text = dict(text)
    rope = dict(text.pop("rope_parameters", None) or {})
    if "rope_theta" in rope:
        text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    if text["model_type"] == "qwen3_moe" and "num_local_experts" in text:
        text["num_experts"] = text.pop("num_local_experts")
    return {key: value for key, value in text.items() if not key.startswith("_") and key != "dtype"}


def _side(size: int | list[int]) -> int:
    return size if isinstance(size, int) else size[0]
