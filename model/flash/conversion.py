"""Model directories from one layout to the other, shard by shard: tensors are read when their shard is written."""

import shutil
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import InternVLConfig
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from model.data.errors import InputError
from model.flash.checkpoint import holds_flash, load_config, module_tensors, open_weights, require_names, write_weights
from model.flash.directory import building, write_configuration, write_json, write_tokenizer
from model.flash.layouts import EMBEDDING, to_original
from model.flash.network import FlashModel
from model.flash.original import original_config
from model.flash.processor import FlashProcessor, load_processor, read_json
from model.flash.weights import INDEX, Lazy, StoredWeights, write_shards

Layout = Literal["huggingface", "original"]


def layout_of(directory: Path) -> Layout:
    """The layout of a model directory.

    Raises:
        InputError: missing, or not an InternVL.
    """
    path = directory / "config.json"
    match read_json(path).get("model_type"):
        case "internvl":
            return "huggingface"
        case "internvl_chat":
            return "original"
        case other:
            raise InputError(f"{path}: model_type is {other!r}, not 'internvl' or 'internvl_chat'")


def convert(source: Path, target: Path, layout: Layout) -> None:
    """Write the model of ``source`` at ``target`` in ``layout``; every tensor keeps its bits.

    Args:
        source: a model directory of either layout; one already in ``layout`` is written anew.
        target: must not exist (or be empty); it appears only when it is complete.
        layout: to write.

    Raises:
        InputError: ``source`` is no InternVL or is broken, or ``target`` holds something.
    """
    source, target = Path(source), Path(target)
    if not source.is_dir():
        raise InputError(f"{source}: no such model directory")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: exists already and is not empty")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _convert(source, partial, layout)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _convert(source: Path, target: Path, layout: Layout) -> None:
    layout_of(source)
    processor = load_processor(source)
    config = load_config(source)
    config.image_token_id = processor.image_token_id
    stored = open_weights(source)
    with building(source), no_init_weights(), torch.device("meta"):
        expected = set(module_tensors(FlashModel(config, processor.tiling, flash=holds_flash(stored))))
    require_names(stored, expected, tied=config.text_config.tie_word_embeddings)
    tensors = {name: stored.lazy(name) for name in stored.names}
    dtype = _dtype(stored)
    if layout == "huggingface":
        write_weights(tensors, target)
        write_configuration(config, dtype, processor, target)
        return
    files = write_shards(target, "model", _original_tensors(tensors))
    if len(set(files.values())) > 1:
        size = sum(tensor.size for tensor in tensors.values())
        write_json(target / INDEX, {"metadata": {"total_size": size}, "weight_map": files})
    write_json(target / "config.json", _original_config(config, processor, dtype))
    write_tokenizer(config, processor, target)


def _dtype(stored: StoredWeights) -> str:
    return str(stored.tensor(EMBEDDING).dtype).removeprefix("torch.")


def _original_config(config: InternVLConfig, processor: FlashProcessor, dtype: str) -> dict[str, object]:
    return original_config(
        config.to_dict(),
        architecture=MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.text_config.model_type],
        template=processor.template,
        min_tiles=processor.tiling.min_tiles,
        max_tiles=processor.tiling.max_tiles,
        dtype=dtype,
    )


def _original_tensors(tensors: dict[str, Lazy]) -> dict[str, Lazy]:
    """Tensors of the original layout, queries, keys and values fused again."""
    parts: dict[str, list[Lazy]] = {}
    for name in sorted(tensors, key=lambda name: to_original(name).third or 0):
        parts.setdefault(to_original(name).name, []).append(tensors[name])
    return {name: given[0] if len(given) == 1 else _together(given) for name, given in parts.items()}


def _together(parts: list[Lazy]) -> Lazy:
    def read() -> Tensor:
        return torch.cat([part.read() for part in parts])

    return Lazy(sum(part.size for part in parts), read)
