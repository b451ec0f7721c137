"""Find the family of a model directory and open it."""

from pathlib import Path
from types import ModuleType

from model.data.errors import InputError
from model.flash.processor import read_json

MODEL_TYPES = {
    "internvl": "internvl",
    "internvl_chat": "internvl",
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "qwen3_vl_moe": "qwen3_vl",
}
"""``model_type`` of config.json to the module of its family."""
