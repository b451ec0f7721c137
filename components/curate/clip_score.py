"""``clip_score``: captions that a CLIP or SigLIP model of your own finds near their images. No model is shipped."""

import functools
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import daft
from daft import DataType, Expression, Series, col
from PIL import Image

from components.curate.model_sections import ClipScore
from model.data.errors import InputError
from model.flash.images import read_image

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

_LOADING = threading.Lock()
_KINDS = ("clip", "siglip", "siglip2")
_FOUND = DataType.struct({"reason": DataType.string(), "clip_score": DataType.float64()})


class Scorer(NamedTuple):
    """An image-text model with two towers, and what prepares its inputs."""

    model: "PreTrainedModel"
    processor: "ProcessorMixin"


def clip_score(section: ClipScore) -> Expression:
    """Why a row is refused. Fact ``clip_score``: mean cosine of caption and images; null for rows not looked at.

    Raises:
        InputError: there is no such model on this machine; nothing is ever fetched.
    """
    check_model(section.model)
    return _judge(col("media"), col("messages"), col("task"), col("reason"), section)


def check_model(directory: Path) -> None:
    """Make sure that a model lies in ``directory``; looks at its configuration only.

    Raises:
        InputError: names the directory and the command that would fetch a model there.
    """
    try:
        kind = json.loads((directory / "config.json").read_bytes()).get("model_type")
    except OSError:
        fetch = f"hf download openai/clip-vit-base-patch32 --local-dir {directory}"
        raise InputError(f"recipe: clip_score: no CLIP or SigLIP model in {directory}; to fetch one: {fetch}") from None
    except (ValueError, AttributeError):
        raise InputError(f"recipe: clip_score: {directory}/config.json is not a model's configuration") from None
    if kind not in _KINDS:
        raise InputError(f"recipe: clip_score: {directory} holds a {kind} model, not CLIP or SigLIP")


def cosine(images: list[Image.Image], caption: str, directory: Path) -> float:
    """Mean cosine, in [-1, 1], of the embeddings of a caption and of each image.

    The caption is cut to what the model's text tower takes. One row at a time on one thread, so that scores do not
    depend on neighbours and processors; sets the number of torch's threads in this process.
    """
    import torch

    model, processor = _scorer(directory)
    torch.set_num_threads(1)
    padding = "longest" if model.config.model_type == "clip" else "max_length"  # SigLIP was trained with padded texts
    length = model.config.text_config.max_position_embeddings
    inputs = processor(
        text=[caption], images=images, padding=padding, truncation=True, max_length=length, return_tensors="pt"
    )
    with torch.inference_mode():
        outputs = model(**inputs)
    image_ND = torch.nn.functional.normalize(outputs.image_embeds, dim=-1)
    text_1D = torch.nn.functional.normalize(outputs.text_embeds, dim=-1)
    return round(float((image_ND @ text_1D.T).mean()), 5)


def judge(
    media: list[dict[str, Any]], messages: list[dict[str, Any]], section: ClipScore
) -> tuple[str | None, float | None]:
    """Why a row is refused (None: it is not), and its score. The caption is the last message."""
    images = [medium for medium in media if medium["kind"] == "image"]
    if not images:
        return None, None
    try:
        decoded = [read_image(medium["bytes"] or b"") for medium in images]
    except InputError as error:
        return str(error), None
    score = cosine(decoded, messages[-1]["content"], section.model)
    if score < section.min_cosine:
        return f"caption and image have cosine {score:.3f}; the least is {section.min_cosine}", score
    return None, score


def _scorer(directory: Path) -> Scorer:
    with _LOADING:
        return _load(directory)


@functools.cache
def _load(directory: Path) -> Scorer:
    from transformers import AutoModel, AutoProcessor

    local = {"local_files_only": True, "trust_remote_code": False}
    model = AutoModel.from_pretrained(directory, use_safetensors=True, dtype="float32", **local)
    return Scorer(model.eval(), AutoProcessor.from_pretrained(directory, **local))


@daft.func.batch(return_dtype=_FOUND, use_process=False)
def _judge(media: Series, messages: Series, task: Series, reason: Series, section: ClipScore) -> list[dict[str, Any]]:
    found = []
    columns = (media.to_pylist(), messages.to_pylist(), task.to_pylist(), reason.to_pylist())
    for row, turns, name, earlier in zip(*columns, strict=True):
        look = earlier is None and name in section.tasks
        why, score = judge(row, turns, section) if look else (None, None)
        found.append({"reason": why, "clip_score": score})
    return found
