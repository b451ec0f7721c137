"""Model directories: one Hugging Face directory, its shards split by half behind one index.

Stock ``AutoModelForImageTextToText`` and vLLM open it as they open any InternVL; each half loads alone. A directory in
the original layout loads too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import InternVLConfig
from transformers.initialization import no_init_weights

from model.data.artifact import file_sha256
from model.data.errors import InputError
from model.flash.decisions import Decision, stated_decision
from model.flash.directory import building, load_config, write_configuration, write_json
from model.flash.layouts import EMBEDDING, FLASH_PREFIXES, HEAD, LANGUAGE_PREFIXES, VISION_PREFIXES
from model.flash.network import FlashModel
from model.flash.processor import FlashProcessor, load_processor, read_json
from model.flash.weights import FLASH_SHARD, INDEX, SINGLE, Lazy, StoredWeights, lazy, write_shards

__all__ = ["load_config", "load_model", "load_processor", "save_model", "weights_version", "write_weights"]

VISION_SHARD, LANGUAGE_SHARD = "model-vision.safetensors", "model-language.safetensors"
_HALVES = {
    VISION_SHARD: VISION_PREFIXES,
    LANGUAGE_SHARD: LANGUAGE_PREFIXES,
    FLASH_SHARD: FLASH_PREFIXES,
}
_PARTS = {
    "all": (*VISION_PREFIXES, *FLASH_PREFIXES, *LANGUAGE_PREFIXES),
    "vision": (*VISION_PREFIXES, *FLASH_PREFIXES),
    "language": LANGUAGE_PREFIXES,
}


def save_model(model: FlashModel, processor: FlashProcessor, directory: Path) -> None:
    """Write a complete model directory; the same model gives the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    write_weights({name: lazy(tensor) for name, tensor in module_tensors(model).items()}, directory)
    write_configuration(model.config, str(model.dtype).removeprefix("torch."), processor, directory)


def write_weights(tensors: dict[str, Lazy], directory: Path) -> None:
    """Write tensors under our names as shards split by half, and their index."""
    weight_map = {}
    (directory / FLASH_SHARD).unlink(missing_ok=True)  # of another network; no index would say that it is not ours
    for shard, prefixes in _HALVES.items():
        half = {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}
        files = write_shards(directory, shard.removesuffix(".safetensors"), half)
        if shard != FLASH_SHARD:
            weight_map |= files
    size = sum(tensors[name].size for name in weight_map)
    write_json(directory / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


def module_tensors(model: FlashModel) -> dict[str, Tensor]:
    """The weights of a network under the names they are stored by; views, so that writing to one changes the network.

    transformers keeps the experts of Qwen3's mixtures in fused tensors: [E, 2I, D] for gate and up, [E, D, I] for down.
    """
    apart = model.config.text_config.model_type == "qwen3_moe"
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == HEAD and model.config.text_config.tie_word_embeddings:
            continue
        if apart and name.endswith(".experts.gate_up_proj"):
            stem = name.removesuffix(".gate_up_proj")
            for number, gate_up in enumerate(tensor):
                gate, up = gate_up.chunk(2)
                tensors |= {f"{stem}.{number}.gate_proj.weight": gate, f"{stem}.{number}.up_proj.weight": up}
        elif apart and name.endswith(".experts.down_proj"):
            stem = name.removesuffix(".down_proj")
            tensors |= {f"{stem}.{number}.down_proj.weight": down for number, down in enumerate(tensor)}
        else:
            tensors[name] = tensor
    return tensors


def load_model(
    directory: Path,
    part: Literal["all", "vision", "language"] = "all",
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    attention: str = "sdpa",
    full_resolution: bool = False,
) -> FlashModel:
    """Load a model directory, or one half of it, in evaluation mode.

    It routes tiles as its config.json says; with ``full_resolution`` it shows all of them in full, and needs no router.

    Raises:
        InputError: the directory is missing, incomplete, or not an InternVL; or it is to route and has no router.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such model directory")
    processor = load_processor(directory)
    config = load_config(directory, attention)
    config.image_token_id = processor.image_token_id
    stored = open_weights(directory, _PARTS[part])
    flash = holds_flash(stored)
    with building(directory), no_init_weights(), _default_dtype(dtype), torch.device(device):
        model = FlashModel(config, processor.tiling, part, weights_version(directory), flash=flash)
    if model.language_model is not None:
        model.language_model.tie_weights()  # transformers leaves this out where it draws no weights
    fill(model, stored)
    if part != "language" and not full_resolution:
        model.decision = _stated_decision(config, directory, flash=flash)
    return model.eval()


def holds_flash(stored: StoredWeights) -> bool:
    """Whether a directory has a router and a second projector."""
    return any(name.startswith(FLASH_PREFIXES) for name in stored.names)


def _stated_decision(config: InternVLConfig, directory: Path, *, flash: bool) -> Decision | None:
    path = directory / "config.json"
    try:
        decision = stated_decision(config.to_dict())
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if decision is not None and not flash:
        holds = "mlp2, pooling_before_gating, gating" if config_is_original(path) else FLASH_SHARD
        raise InputError(
            f"{path}: flash_mode asks for routing, but the directory has no router ({holds}); "
            "set flash_mode to false to show every tile at its full resolution"
        )
    return decision


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Networks are built in ``dtype``; what transformers computes in float32 (rotary frequencies) stays so."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def config_is_original(path: Path) -> bool:
    """Whether this config.json is of the original layout."""
    return read_json(path).get("model_type") == "internvl_chat"


def open_weights(directory: Path, prefixes: tuple[str, ...] = _PARTS["all"]) -> StoredWeights:
    """The tensors of a model directory of either layout.

    Raises:
        InputError: a shard is missing or broken, or a tensor is of no InternVL.
    """
    return StoredWeights(directory, prefixes, original=config_is_original(directory / "config.json"))


@torch.no_grad()
def fill(model: FlashModel, stored: StoredWeights) -> None:
    """Copy stored tensors into a network, one at a time.

    Raises:
        InputError: the stored tensors are not the network's.
    """
    targets = module_tensors(model)
    require_names(stored, set(targets), tied=model.config.text_config.tie_word_embeddings)
    for name in stored.names:
        if name not in targets:
            continue
        tensor = stored.tensor(name)
        if tensor.shape != targets[name].shape:
            raise InputError(
                f"{stored.directory}: weights do not fit the configuration: {name} is {list(tensor.shape)}, "
                f"not {list(targets[name].shape)}"
            )
        targets[name].copy_(tensor)


def require_names(stored: StoredWeights, expected: set[str], *, tied: bool) -> None:
    """Compare the names of stored tensors with a network's.

    Raises:
        InputError: one is missing or unknown, or a head that is tied to the embedding differs from it.
    """
    names = set(stored.names)
    if tied and {HEAD, EMBEDDING} <= names:
        names.discard(HEAD)
        if not torch.equal(stored.tensor(HEAD), stored.tensor(EMBEDDING)):
            raise InputError(f"{stored.directory}: config.json ties the output head to the embedding, but they differ")
    if odd := sorted(expected ^ names):
        raise InputError(
            f"{stored.directory}: weights do not fit the configuration: {len(odd)} names differ, first {odd[0]}"
        )


def weights_version(directory: Path) -> str:
    """Short hash of the vision half's weights and configuration: features of equal versions are exchangeable."""
    directory = Path(directory)
    index = directory / INDEX
    names = {SINGLE}
    if index.is_file():
        weight_map = read_json(index).get("weight_map", {})
        names = {shard for name, shard in weight_map.items() if not _of_language(name)}
    settings = {"config.json", "processor_config.json"} & {path.name for path in directory.iterdir()}
    flash = {FLASH_SHARD} if (directory / FLASH_SHARD).is_file() else set()
    digest = sha256()
    for name in sorted({*names, *flash, *settings}):
        path = directory / Path(name).name
        if not path.is_file():
            raise InputError(f"{path}: missing; the model directory is incomplete")
        digest.update(file_sha256(path).encode())
    return digest.hexdigest()[:16]


def _of_language(name: str) -> bool:
    return name.startswith((*LANGUAGE_PREFIXES, "model.language_model.", "lm_head."))
