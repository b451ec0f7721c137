"""Make a new network from its typed configuration."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, InternVLConfig, InternVLVisionModel, PreTrainedModel

from model.data.chat import detect_template, end_of_turn
from model.data.errors import InputError
from model.data.schema import IMG_CONTEXT
from model.flash.config import LanguageConfig, ModelConfig
from model.flash.images import Tiling
from model.flash.network import FlashModel
from model.flash.processor import FlashProcessor, read_json
from model.flash.weights import StoredWeights


def transformers_config(config: ModelConfig, tokenizer: Tokenizer) -> InternVLConfig:
    """The configuration of ``InternVLForConditionalGeneration`` for ours."""
    vision = config.vision.model_dump(exclude={"position_init_std"})
    # Published checkpoints take the last hidden state as it is: no final norm.
    vision |= {"model_type": "internvl_vision", "use_mean_pooling": True}
    language = config.language.model_dump(exclude={"extra", "rope_theta", "yarn"}) | dict(config.language.extra)
    language |= {
        "vocab_size": _vocabulary(config.language.vocab_size, tokenizer),
        "rope_parameters": _rope(config.language),
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(end_of_turn(detect_template(tokenizer))),
        "pad_token_id": None,
    }
    model_type = language.pop("model_type")
    return InternVLConfig(
        vision_config=vision,
        text_config=AutoConfig.for_model(model_type, **language).to_dict(),
        image_token_id=tokenizer.token_to_id(IMG_CONTEXT),
        image_seq_length=config.rows_per_tile,
        downsample_ratio=config.downsample_ratio,
        tie_word_embeddings=config.language.tie_word_embeddings,
    )


def _rope(language: LanguageConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": language.rope_theta}
    return rope if language.yarn is None else rope | {"rope_type": "yarn"} | language.yarn.model_dump()


def _vocabulary(rows: int | None, tokenizer: Tokenizer) -> int:
    ids = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    if rows is not None and rows < ids:
        raise InputError(f"model.language.vocab_size: {rows}, but the tokenizer has {ids} ids")
    return rows or ids


def build_model(config: ModelConfig, tokenizer: Tokenizer, *, seed: int) -> tuple[FlashModel, FlashProcessor]:
    """A network and its processor: random weights drawn from ``seed``, or pretrained halves where given.

    Raises:
        InputError: a pretrained half is asked for that is not on this machine, or is of another shape.
    """
    processor = processor_for(config, tokenizer)
    torch.manual_seed(seed)
    model = FlashModel(transformers_config(config, tokenizer), processor.tiling)
    initialise_positions(model, config.vision.position_init_std)
    if config.vision_checkpoint is not None:
        _load_vision(model.vision_tower, config.vision_checkpoint)
    if config.language_checkpoint is not None:
        pretrained = _pretrained(AutoModelForCausalLM, "model.language_checkpoint", config.language_checkpoint)
        _resize_vocabulary(pretrained, model.config.text_config.vocab_size)
        _load_half(model.language_model, pretrained.state_dict(), config.language_checkpoint)
    return model, processor


def _pretrained(model_class: type, key: str, directory: Path) -> PreTrainedModel:
    if not (directory / "config.json").is_file():
        fetch = f"hf download OWNER/NAME --local-dir {directory}"
        raise InputError(f"{key}: no model at {directory.resolve()}; fetch it with: {fetch}")
    raw = read_json(directory / "config.json")
    for name in ("attn_implementation", "_attn_implementation"):
        if "/" in str(raw.get(name)):
            # transformers would fetch that repository and run it.
            raise InputError(f"{key}: {directory / 'config.json'}: {name} is {raw[name]!r}, code that is not run here")
    try:
        return model_class.from_pretrained(directory, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    except (ArithmeticError, LookupError, OSError, TypeError, ValueError, StrictDataclassError) as error:
        raise InputError(f"{key}: {directory}: {str(error).splitlines()[0]}") from error


def _resize_vocabulary(model: PreTrainedModel, vocabulary: int) -> None:
    """Fit the embeddings to the tokenizer; new rows start at the mean of the old ones."""
    old = model.get_input_embeddings().num_embeddings
    if vocabulary == old:
        return
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if vocabulary > old:
            with torch.no_grad():
                layer.weight[old:] = layer.weight[:old].mean(0)


def _load_vision(tower: nn.Module, directory: Path) -> None:
    """Take a tower of transformers' ``internvl_vision``, or a published InternViT, which has the original names."""
    if not _is_original(directory):
        pretrained = _pretrained(InternVLVisionModel, "model.vision_checkpoint", directory)
        return _load_half(tower, pretrained.state_dict(), directory)
    prefix = "vision_tower."
    stored = StoredWeights(directory, (prefix,), original=True, within="vision_model.")
    return _load_half(tower, {name.removeprefix(prefix): stored.tensor(name) for name in stored.names}, directory)


def _is_original(directory: Path) -> bool:
    path = directory / "config.json"
    return path.is_file() and read_json(path).get("model_type") == "intern_vit_6b"


def _load_half(half: nn.Module, tensors: dict[str, Tensor], directory: Path) -> None:
    try:
        half.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise InputError(f"{directory}: does not have the shape that the profile states: {reason}") from error


def processor_for(config: ModelConfig, tokenizer: Tokenizer) -> FlashProcessor:
    """The processor of a network of this configuration."""
    tiling = Tiling(config.vision.image_size, config.min_tiles, config.max_tiles)
    return FlashProcessor(tokenizer, tiling, config.rows_per_tile, config.system_prompt)


def initialise_positions(model: FlashModel, std: float) -> None:
    """Draw position and class embeddings: transformers leaves them at zero, which only suits loading weights."""
    embeddings = model.vision_tower.embeddings
    for parameter in (embeddings.position_embeddings, embeddings.cls_token):
        if parameter is not None:
            torch.nn.init.normal_(parameter, std=std)


def redraw_weights(model: FlashModel, seed: int) -> None:
    """Replace all weights by new random ones of the same shapes and the same spread of positions."""
    torch.manual_seed(seed)
    std = model.vision_tower.embeddings.position_embeddings.std().item()
    fresh = FlashModel(model.config, model.tiling, flash=model.router is not None)
    initialise_positions(fresh, std)
    model.load_state_dict(fresh.state_dict())
