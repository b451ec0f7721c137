"""Low-rank adapters beside their models: what a training step writes, and merging and unmerging by hand."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from model.data.artifact import payload_sha256
from model.data.errors import InputError
from model.families.interface import Network
from model.families.opening import load_network, load_processor, save_network
from model.flash.processor import read_json
from model.training.lora import (
    BASE,
    CONFIG,
    WEIGHTS,
    load_adapter,
    merge_lora,
    remove_lora,
    save_adapter,
    unmerge_lora,
)

ADAPTER = "adapter"
"""Folder of a model directory that holds the adapter folded into its weights."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def fold_adapter(network: Network, output: Path, init: Path) -> None:
    """Write the trained adapter of ``network`` to ``output/adapter``, and fold it into the weights of ``init``.

    Args:
        network: as ``add_lora`` and training left it; a plain network afterwards.
        output: the model directory that will hold ``network``.
        init: the model directory that the weights came from; its payload hash is the adapter's base.
    """
    save_adapter(network, output / ADAPTER, base_sha256=payload_sha256(init))
    remove_lora(network)
    # An engine may have rounded what did not train (DeepSpeed in bfloat16 does); the model is base and adapter exactly.
    network.load_state_dict(load_network(init).state_dict())
    load_adapter(network, output / ADAPTER, base_sha256=None)
    merge_lora(network)


def merge_directories(base: Path, adapter: Path, output: Path) -> None:
    """Fold ``adapter`` into ``base``, in the dtype of ``base``; a copy of the adapter lies in the result, as in what a
    training step writes.

    Raises:
        InputError: the adapter is not of this base, or ``output`` exists.
    """
    with _new_directory(output) as partial:
        network = load_network(base, dtype=_dtype(base))
        load_adapter(network, adapter, base_sha256=_payload_sha256(base))
        merge_lora(network)
        save_network(network, load_processor(base), partial)
        (partial / ADAPTER).mkdir()
        for file in (CONFIG, WEIGHTS, BASE):
            shutil.copyfile(adapter / file, partial / ADAPTER / file)


def unmerge_directory(model: Path, output: Path) -> None:
    """The base of ``model`` again, as near as rounding allows: ``model`` less its ``adapter/``, in its dtype.

    Raises:
        InputError: ``model`` holds no adapter, or ``output`` exists.
    """
    if not (model / ADAPTER).is_dir():
        raise InputError(f"{model}: no {ADAPTER} folder in it; this model was not merged from an adapter")
    with _new_directory(output) as partial:
        network = load_network(model, dtype=_dtype(model))
        load_adapter(network, model / ADAPTER, base_sha256=None)
        unmerge_lora(network)
        save_network(network, load_processor(model), partial)


def _payload_sha256(directory: Path) -> str:
    try:
        return payload_sha256(directory)
    except FileNotFoundError as error:
        raise InputError(str(error)) from None


def _dtype(directory: Path) -> torch.dtype:
    """The dtype that the configuration of a model directory names; float32 where it names none."""
    config = read_json(directory / "config.json")
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if name not in _DTYPES:
        raise InputError(f"{directory / 'config.json'}: dtype is {name}; only {', '.join(_DTYPES)} can be merged")
    return _DTYPES[name]


@contextmanager
def _new_directory(output: Path) -> Iterator[Path]:
    """A directory to write to that becomes ``output`` when all is well, and vanishes when not."""
    if output.exists():
        raise InputError(f"{output}: exists; name a new directory")
    partial = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
