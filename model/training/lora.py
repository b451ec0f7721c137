"""Low-rank adapters through peft: put in, fold into the weights, taken out again, saved and loaded.

Source: LoRA (arXiv 2106.09685): a linear layer ``W`` [out, in] becomes ``W + alpha / rank * B A`` with ``A`` [rank, in]
and ``B`` [out, rank]; ``B`` starts at zero. The layers are named one by one from ``Network.parts()``: a suffix such as
``gate_proj`` would also find the vision tower of Qwen2.5-VL.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.data.artifact import write_atomic
from model.data.errors import InputError
from model.families.interface import Network
from model.flash.processor import read_json
from model.training.config import LoraConfig

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
_NAME = "default"
_PEFT_PREFIX = "base_model.model."
_STOCK_PREFIXES = (
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("language_model.model.", "model.language_model."),
)
"""Module names of our networks and of transformers' classes, where they differ."""
_PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
}
"""What an adapter must say, or leave out, for its product to be ``alpha / rank * B A``."""


def add_lora(network: Network, config: LoraConfig, seed: int = 0) -> None:
    """Give the linear layers of ``config.targets`` adapters; afterwards only these require gradients.

    The head and the embeddings never get one. A mixture's experts are one 3-dimensional tensor per matrix; each expert
    gets its own rank. The same seed gives the same adapters on every device and rank.

    Raises:
        InputError: dropout is asked for on experts, where it is not defined.
    """
    modules, experts = _targets(network, config.targets)
    if experts and config.dropout:
        raise InputError("lora.dropout: must be 0 for a mixture of experts, whose adapters act on the weights")
    _inject(network, modules, experts, rank=config.rank, alpha=config.alpha, dropout=config.dropout, seed=seed)


def _targets(network: Network, parts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of the linear layers of these parts, and of their experts' tensors."""
    modules, experts = [], []
    names = {id(module): name for name, module in network.named_modules()}
    head, found = network.head, network.parts()
    for part in parts:
        inside = {id(m): m for root in getattr(found, part) for m in root.modules() if m is not head}
        modules += [names[key] for key, module in inside.items() if isinstance(module, nn.Linear)]
        experts += [f"{names[key]}.{name}" for key, module in inside.items() for name in _expert_tensors(module)]
    return sorted(modules), sorted(experts)


def _expert_tensors(module: nn.Module) -> list[str]:
    """Parameters [experts, ., .] of transformers' fused experts."""
    if not hasattr(module, "num_experts"):
        return []
    return [name for name, p in module.named_parameters(recurse=False) if p.ndim == 3]


def _inject(
    network: Network, modules: list[str], experts: list[str], *, rank: int, alpha: float, dropout: float, seed: int
) -> None:
    # Given a transformers model, peft rewrites its targets by the model's type; given a plain module, it obeys.
    plain = nn.Module()
    plain.network = network
    config = PeftConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=[f"network.{name}" for name in modules],
        target_parameters=[f"network.{name}" for name in experts] or None,
    )
    # peft draws on the CPU, whatever the device; the random numbers of training must not move.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, plain, _NAME)
    for _, layer in adapter_layers(network):
        layer.train(layer.get_base_layer().training)


def adapter_layers(network: Network) -> Iterator[tuple[str, LoraLayer]]:
    """peft's layers by their names, a wrapper before what it wraps; empty for a network without an adapter."""
    return ((name, module) for name, module in network.named_modules() if isinstance(module, LoraLayer))


def merge_lora(network: Network) -> None:
    """Fold the adapter into the weights and take its layers out: names and structure are those before ``add_lora``.

    Raises:
        InputError: a folded weight is not finite.
    """
    _fold(network, 1)
    remove_lora(network)


def unmerge_lora(network: Network) -> None:
    """The inverse of ``merge_lora``, for merged weights that got their adapter by ``load_adapter``.

    Each weight comes back within two roundings: ``|W' - W| <= u (|merged| + |W'|)``, u = 2**-24 in float32.
    """
    _fold(network, -1)
    remove_lora(network)


@torch.no_grad()
def _fold(network: Network, sign: int) -> None:
    for name, layer in adapter_layers(network):
        base = layer.get_base_layer()
        weight = getattr(base, layer.parameter_name) if isinstance(layer, ParamWrapper) else base.weight
        weight.add_(layer.get_delta_weight(_NAME).to(weight.dtype), alpha=sign)
        if not torch.isfinite(weight).all():
            raise InputError(f"{name}: the adapter makes weights that are not finite")


def remove_lora(network: Network) -> None:
    """Take the adapter's layers out, and leave the weights as they are."""
    for name, layer in list(adapter_layers(network)):
        if not name.endswith(".base_layer"):  # a wrapper inside a wrapper leaves with it
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, layer.get_base_layer())
    network.requires_grad_(True)


def save_adapter(network: Network, directory: Path, *, base_sha256: str, base_name: str | None = None) -> None:
    """Write an adapter directory as peft does, with the names of transformers' own class of this model.

    ``PeftModel.from_pretrained`` opens it over the base. The same adapter gives the same bytes.

    Args:
        network: with the adapter in it.
        directory: gets ``adapter_config.json``, ``adapter_model.safetensors`` and ``base.json``.
        base_sha256: payload hash of the model directory that the adapter was trained on.
        base_name: what peft calls ``base_model_name_or_path``; no path of this machine.
    """
    layers = list(adapter_layers(network))
    first = layers[0][1]
    document = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_name,
        "r": first.r[_NAME],
        "lora_alpha": first.lora_alpha[_NAME],
        "lora_dropout": getattr(first.lora_dropout[_NAME], "p", 0.0),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "target_modules": sorted(_stock(name) for name, layer in layers if not isinstance(layer, ParamWrapper)),
        "target_parameters": sorted(_wrapped(n, layer) for n, layer in layers if isinstance(layer, ParamWrapper))
        or None,
    }
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {key: t.detach().cpu().contiguous() for key, t in _adapter_tensors(network).items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    for file, content in ((CONFIG, document), (BASE, {"name": base_name, "sha256": base_sha256})):
        write_atomic(directory / file, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def _stock(name: str) -> str:
    """A module of our network, named as transformers' own class names it."""
    for ours, theirs in _STOCK_PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _wrapped(name: str, layer: ParamWrapper) -> str:
    """The tensor of a wrapper; wrappers of one module's tensors stand in each other."""
    return f"{_stock(name.removesuffix('.base_layer'))}.{layer.parameter_name}"


def _adapter_tensors(network: Network) -> dict[str, nn.Parameter]:
    """The adapter's parameters by their names in an adapter file."""
    return {
        _PEFT_PREFIX + _stock(name.replace(f".{_NAME}.", ".")): parameter
        for name, parameter in network.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


def load_adapter(network: Network, directory: Path, *, base_sha256: str | None) -> None:
    """Put a saved adapter into ``network``, over the weights it was trained on.

    Args:
        network: without an adapter.
        directory: written by ``save_adapter``.
        base_sha256: payload hash of the directory that ``network`` was loaded from; None skips the comparison, for
            merged weights.

    Raises:
        InputError: the adapter is of another base or shape, or of a kind that ``save_adapter`` does not write; then
            ``network`` is as it was.
    """
    base = read_json(directory / BASE).get("sha256")
    if base_sha256 is not None and base != base_sha256:
        raise InputError(f"{directory}: the adapter is of the base {str(base)[:12]}, not of {base_sha256[:12]}")
    config = _read_config(directory / CONFIG)
    try:
        tensors = load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{directory / WEIGHTS}: {error}") from error
    names = {_stock(name): name for name, _ in network.named_modules()}
    modules = [_known(names, name, directory) for name in config.get("target_modules") or ()]
    experts = []
    for parameter in config.get("target_parameters") or ():
        module, _, tensor = parameter.rpartition(".")
        experts.append(f"{_known(names, module, directory)}.{tensor}")
    try:
        _inject(network, modules, experts, rank=config["r"], alpha=config["lora_alpha"], dropout=0.0, seed=0)
        _copy_tensors(tensors, _adapter_tensors(network), directory / WEIGHTS)
    except ValueError as error:
        remove_lora(network)
        if isinstance(error, InputError):
            raise
        # peft's own words: a target that can have no adapter.
        raise InputError(f"{directory / CONFIG}: {str(error).splitlines()[0]}") from error


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    for key, plain in _PLAIN.items():
        if config.get(key, plain) != plain:
            raise InputError(f"{path}: {key} is {config[key]!r}; only plain LoRA can be merged")
    for key, kind, what in (("r", int, "whole number"), ("lora_alpha", int | float, "number")):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < float("inf"):
            raise InputError(f"{path}: {key} must be a {what} above zero")
    modules, parameters = config.get("target_modules"), config.get("target_parameters") or []
    for key, names in (("target_modules", modules), ("target_parameters", parameters)):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{path}: {key} must be a list of full names")
    return config


def _known(names: dict[str, str], name: str, directory: Path) -> str:
    if name not in names:
        raise InputError(f"{directory}: the network has no module {name}; the adapter is of another architecture")
    return names[name]


def _copy_tensors(tensors: dict[str, Tensor], parameters: dict[str, nn.Parameter], path: Path) -> None:
    if odd := sorted(tensors.keys() ^ parameters.keys()):
        raise InputError(f"{path}: {odd[0]} is {'unknown' if odd[0] in tensors else 'missing'}")
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise InputError(f"{path}: {name} is {list(tensors[name].shape)}, not {list(parameter.shape)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
