"""Find the family of a model directory and open it. Opening a processor imports no torch."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from model.data.errors import InputError
from model.flash.processor import read_json

if TYPE_CHECKING:
    import torch

    from model.families.interface import Network, Processor


def family_of(directory: Path) -> ModuleType:
    """The module of the family that ``config.json`` names.

    Raises:
        InputError: no model directory, or of no family that is known here.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such model directory")
    match read_json(directory / "config.json").get("model_type"):
        case "internvl" | "internvl_chat":
            from model.families import internvl as family
        case "qwen2_vl":
            from model.families import qwen2_vl as family
        case "qwen2_5_vl":
            from model.families import qwen2_5_vl as family
        case "qwen3_vl" | "qwen3_vl_moe":
            from model.families import qwen3_vl as family
        case other:
            raise InputError(f"{directory / 'config.json'}: model_type {other!r} is of no known family")
    return family


def load_network(
    directory: Path, *, dtype: "torch.dtype | None" = None, device: str = "cpu", attention: str = "sdpa"
) -> "Network":
    """Load a model directory in evaluation mode; float32 unless ``dtype`` says otherwise.

    Raises:
        InputError: the directory is missing, incomplete, broken, or of no known family.
    """
    return family_of(directory).load_network(directory, dtype=dtype, device=device, attention=attention)


def load_processor(directory: Path) -> "Processor":
    """Read the processor of a model directory.

    Raises:
        InputError: a file is missing or broken, or the family is not known.
    """
    return family_of(directory).load_processor(directory)


def save_network(network: "Network", processor: "Processor", directory: Path) -> None:
    """Write a complete model directory of the network's own family; the same network gives the same bytes."""
    match network.config.model_type:
        case "internvl":
            from model.families import internvl as family
        case "qwen2_vl":
            from model.families import qwen2_vl as family
        case "qwen2_5_vl":
            from model.families import qwen2_5_vl as family
        case _:
            from model.families import qwen3_vl as family
    family.save_network(network, processor, directory)
