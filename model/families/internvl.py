"""InternVL3.5: Hugging Face and original checkpoints, dense and mixture-of-experts, with and without Flash tensors.

Imports no torch until a network is opened.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from model.flash.processor import FlashProcessor, load_processor

if TYPE_CHECKING:
    import torch

    from model.flash.network import FlashModel

__all__ = ["load_network", "load_processor", "save_network"]


def load_network(
    directory: Path, *, dtype: "torch.dtype | None" = None, device: str = "cpu", attention: str = "sdpa"
) -> "FlashModel":
    """Load a model directory of either layout in evaluation mode; float32 unless ``dtype`` says otherwise.

    Raises:
        InputError: the directory is missing, incomplete, broken, or not an InternVL.
    """
    import torch

    from model.flash.checkpoint import load_model

    return load_model(directory, dtype=dtype or torch.float32, device=device, attention=attention)


def save_network(network: "FlashModel", processor: FlashProcessor, directory: Path) -> None:
    """Write a model directory in the Hugging Face layout; the same network gives the same bytes."""
    from model.flash.checkpoint import save_model

    save_model(network, processor, directory)
