"""Qwen2.5-VL (arXiv 2502.13923): window attention in the tower, time of videos in seconds."""

from pathlib import Path
from typing import TYPE_CHECKING

from model.families.qwen_files import load_qwen_processor as load_processor

if TYPE_CHECKING:
    import torch

    from model.families.qwen_network import QwenNetwork
    from model.families.qwen_processor import QwenProcessor

__all__ = ["load_network", "load_processor", "save_network"]


def load_network(
    directory: Path, *, dtype: "torch.dtype | None" = None, device: str = "cpu", attention: str = "sdpa"
) -> "QwenNetwork":
    """Load a model directory in evaluation mode; float32 unless ``dtype`` says otherwise.

    Raises:
        InputError: the directory is missing, incomplete, broken, or not a Qwen2.5-VL.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    from model.families.qwen_checkpoint import load_qwen

    classes = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}
    return load_qwen(directory, classes, dtype=dtype, device=device, attention=attention)


def save_network(network: "QwenNetwork", processor: "QwenProcessor", directory: Path) -> None:
    """Write a complete model directory; the same network gives the same bytes."""
    from model.families.qwen_checkpoint import save_qwen

    save_qwen(network, processor, directory, nested=False)
