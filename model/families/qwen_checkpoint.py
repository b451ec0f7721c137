"""Directories of the Qwen-VLs: read in every layout they were published in, written in the published one.

Checkpoints from before transformers 4.52 name the tower ``visual.*`` and the text model ``model.*``, as Qwen2-VL and
Qwen2.5-VL are published; later ones put both under ``model.``. Published mixtures of experts store the matrices of the
experts transposed.
"""

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_utils import local_torch_dtype

from model.data.artifact import write_atomic
from model.data.errors import InputError
from model.families.qwen_files import load_qwen_processor, save_qwen_processor
from model.families.qwen_network import QwenNetwork
from model.families.qwen_processor import QwenProcessor
from model.flash.directory import building
from model.flash.processor import read_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_VISION, _LANGUAGE = "model.visual.", "model.language_model."
_TIED, _EMBEDDING = "lm_head.weight", _LANGUAGE + "embed_tokens.weight"
_EXPERTS = re.compile(r"\.mlp\.experts\.(gate_up|down)_proj$")


def load_qwen(
    directory: Path,
    classes: Mapping[str, type[PreTrainedModel]],
    *,
    dtype: torch.dtype | None,
    device: str,
    attention: str,
) -> QwenNetwork:
    """Load a model directory in evaluation mode.

    Args:
        directory: a Hugging Face directory; only its safetensors are read.
        classes: transformers' network for each ``model_type`` of the family.
        dtype, device: of the weights; float32 unless said otherwise.
        attention: transformers' implementation for both halves.

    Raises:
        InputError: the directory is missing, incomplete, or of another family.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such model directory")
    config = _load_config(directory, classes, attention)
    processor = load_qwen_processor(directory)
    tensors = _read_tensors(directory)
    version = _weights_version(config, tensors)
    # Built in its dtype rather than cast to it: transformers keeps the frequencies of rotary embeddings in float32.
    with building(directory), no_init_weights(), local_torch_dtype(dtype or torch.float32), torch.device(device):
        network = QwenNetwork(classes[config.model_type](config), processor, version)
    _fit(network, tensors, directory)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{directory}: weights do not fit the configuration: {str(error).splitlines()[-1].strip()}"
        ) from error
    return network.eval()


def _load_config(directory: Path, classes: Mapping[str, type], attention: str) -> PreTrainedConfig:
    path = directory / "config.json"
    raw = read_json(path)
    if raw.get("model_type") not in classes:
        raise InputError(f"{path}: model_type is {raw.get('model_type')!r}, not {' or '.join(map(repr, classes))}")
    try:
        config = AutoConfig.for_model(**raw)
    except (AttributeError, TypeError, ValueError, KeyError, StrictDataclassError) as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}") from error
    for part in (config, config.vision_config, config.text_config):
        part._attn_implementation = attention
    return config


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors, under the network's names."""
    shards = [SINGLE]
    if (directory / INDEX).is_file():
        weight_map = read_json(directory / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or {type(shard) for shard in weight_map.values()} != {str}:
            raise InputError(f"{directory / INDEX}: no weight_map")
        shards = sorted(set(weight_map.values()))
    tensors = {}
    for shard in shards:
        path = directory / Path(shard).name
        if not path.is_file():
            raise InputError(f"{path}: missing; the model directory is incomplete")
        try:
            with safe_open(path, framework="pt") as stream:
                tensors |= {_network_name(name): stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: broken safetensors file: {error}") from error
    # Buffers that old versions stored and every version computes.
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(".inv_freq")}


def _network_name(name: str) -> str:
    """Names of every version to those of transformers 5: ``model.visual.*``, ``model.language_model.*``."""
    if name.startswith(("visual.", _VISION)):
        return _VISION + name.partition("visual.")[2]
    if name.startswith("model.") and not name.startswith(_LANGUAGE):
        return _LANGUAGE + name.removeprefix("model.")
    return name


def _fit(network: QwenNetwork, tensors: dict[str, Tensor], directory: Path) -> None:
    """Tie the head, turn the experts, and compare the names."""
    expected = network.state_dict()
    if network.config.tie_word_embeddings and _EMBEDDING in tensors:
        if _TIED in tensors and not torch.equal(tensors[_TIED], tensors[_EMBEDDING]):
            raise InputError(f"{directory}: config.json ties the head to the embeddings, but another head is stored")
        tensors[_TIED] = tensors[_EMBEDDING]
    if odd := sorted(set(expected) ^ set(tensors)):
        raise InputError(f"{directory}: weights do not fit the configuration: {len(odd)} names differ, first {odd[0]}")
    for name in tensors:
        if _EXPERTS.search(name) and tensors[name].shape != expected[name].shape:
            tensors[name] = tensors[name].mT.contiguous()


def _weights_version(config: PreTrainedConfig, tensors: Mapping[str, Tensor]) -> str:
    """Short hash of the vision half's weights and configuration: features of equal versions are exchangeable."""
    digest = sha256(json.dumps(config.vision_config.to_dict(), sort_keys=True, default=str).encode())
    for name in sorted(tensors):
        if name.startswith(_VISION):
            digest.update(name.encode())
            digest.update(tensors[name].contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def save_qwen(network: QwenNetwork, processor: QwenProcessor, directory: Path, *, nested: bool) -> None:
    """Write a complete model directory; the same network gives the same bytes.

    Args:
        network, processor: what to write.
        directory: made where it is missing.
        nested: both halves under ``model.``, as Qwen3-VL is published.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu() for name, tensor in published_tensors(network, nested=nested).items()}
    split = split_torch_state_dict_into_shards(tensors)
    for shard, names in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, directory / shard, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        _write_json(directory / INDEX, index)
    _write_configuration(network, processor, directory)
    save_qwen_processor(processor, directory)


def published_tensors(network: QwenNetwork, *, nested: bool) -> dict[str, Tensor]:
    """The weights under the names and in the shapes that the generation is published in, on their device."""
    tensors = {}
    for name, tensor in sorted(network.state_dict().items()):
        if name == _TIED and network.config.tie_word_embeddings:
            continue
        published = name if nested else name.replace(_VISION, "visual.").replace(_LANGUAGE, "model.")
        tensors[published] = _published(name, tensor.detach()).contiguous()
    return tensors


def _published(name: str, tensor: Tensor) -> Tensor:
    """Experts transposed. transformers tells the layouts apart by shape alone, so square ones stay as they are."""
    if _EXPERTS.search(name) and tensor.shape[-1] != tensor.shape[-2]:
        return tensor.mT
    return tensor


def _write_configuration(network: QwenNetwork, processor: QwenProcessor, directory: Path) -> None:
    config = network.config.to_diff_dict() | {
        "architectures": [type(network.model).__name__.removesuffix("Model") + "ForConditionalGeneration"],
        "dtype": str(network.dtype).removeprefix("torch."),
    }
    for key in ("_name_or_path", "_attn_implementation"):
        config.pop(key, None)
    _write_json(directory / "config.json", config)
    eos = processor.eos_token_id
    pad = processor.tokenizer.token_to_id("<|endoftext|>")
    settings = GenerationConfig(eos_token_id=eos, pad_token_id=eos if pad is None else pad, do_sample=False)
    # Overwritten by the settings that the processor carries, where it has some.
    _write_json(directory / "generation_config.json", settings.to_diff_dict())


def _write_json(path: Path, value: object) -> None:
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())
