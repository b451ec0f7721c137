"""The processor of a Qwen-VL directory, read and written. Imports neither torch nor transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from model.data.artifact import write_atomic
from model.data.errors import InputError
from model.data.video import FrameSampling
from model.families.qwen_chat import RESERVED
from model.families.qwen_images import CLIP_MEAN, CLIP_STD, Patching, PixelRange, VideoBudget
from model.families.qwen_processor import Generation, QwenLimits, QwenProcessor
from model.flash.processor import load_tokenizer, read_json

_HELPFUL = "You are a helpful assistant."
GENERATIONS = {
    "qwen2_vl": Generation(_HELPFUL, "index"),
    "qwen2_5_vl": Generation(_HELPFUL, "seconds"),
    "qwen3_vl": Generation(None, "text"),
    "qwen3_vl_moe": Generation(None, "text"),
}
"""By ``model_type`` of config.json."""

PROCESSOR, IMAGES, VIDEOS = "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"
CARRIED = (
    PROCESSOR,
    IMAGES,
    VIDEOS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""Files that go unchanged from the directory that was loaded to the one that is saved."""


def load_qwen_processor(directory: Path) -> QwenProcessor:
    """Read the processor of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL directory.

    Raises:
        InputError: a file is missing, broken, or contradicts another.
    """
    directory = Path(directory)
    config = read_json(directory / "config.json")
    model_type = config.get("model_type")
    if model_type not in GENERATIONS:
        raise InputError(f"{directory / 'config.json'}: model_type is {model_type!r}, not a Qwen-VL's")
    generation = GENERATIONS[model_type]
    image, video = _settings(directory)
    try:
        vision = config["vision_config"]
        if generation.time == "seconds":
            # 4 is what transformers takes where the configuration is silent; the published ones say 2.
            generation = replace(generation, tokens_per_second=_positive(vision, "tokens_per_second", 4))
        patching = _patching(image, generation)
        for name, own in (("patch_size", patching.patch), ("spatial_merge_size", patching.merge)):
            if vision.get(name, own) != own:
                raise InputError(f"{name} is {vision[name]} in config.json, {own} for the images")
        limits = QwenLimits(_pixels(image, PixelRange(56**2, 1280 * 28**2)), *_video(video, patching, generation))
    except InputError as error:
        raise InputError(f"{directory}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{directory}: broken configuration: {type(error).__name__}: {error}") from error
    files = {name: (directory / name).read_text(encoding="utf-8") for name in CARRIED if (directory / name).is_file()}
    processor = QwenProcessor(load_tokenizer(directory), generation, patching, limits, files)
    for token in RESERVED:
        processor.special_id(token)
    return processor


def save_qwen_processor(processor: QwenProcessor, directory: Path) -> None:
    """Write the tokenizer and the files that the processor carries."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / "tokenizer.json", processor.tokenizer.to_str(pretty=True).encode())
    for name, text in processor.files.items():
        write_atomic(directory / name, text.encode())


def _settings(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of images and of videos: nested in one file since transformers 5, in a file each before."""
    nested = read_json(directory / PROCESSOR) if (directory / PROCESSOR).is_file() else {}
    image = nested.get("image_processor") or read_json(directory / IMAGES)
    video = nested.get("video_processor")
    if video is None:
        # Directories older than transformers 4.52 have none: the published limits of video hold then.
        video = read_json(directory / VIDEOS) if (directory / VIDEOS).is_file() else {}
    return image, video


def _positive(settings: dict[str, Any], name: str, default: float) -> float:
    """A number above zero; ``default`` where the settings are silent."""
    value = settings.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise InputError(f"{name} must be a number above 0, not {value!r}")
    return value


def _count(settings: dict[str, Any], name: str, default: int) -> int:
    value = _positive(settings, name, default)
    if value != int(value):
        raise InputError(f"{name} must be a whole number, not {value!r}")
    return int(value)


def _patching(image: dict[str, Any], generation: Generation) -> Patching:
    clip = generation.time != "text"
    mean = image.get("image_mean", CLIP_MEAN if clip else (0.5,) * 3)
    std = image.get("image_std", CLIP_STD if clip else (0.5,) * 3)
    if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
        raise InputError(
            f"image_mean and image_std must be three numbers, those of image_std above 0, not {mean}, {std}"
        )
    return Patching(
        patch=_count(image, "patch_size", 14 if clip else 16),
        merge=_count(image, "merge_size", 2),
        temporal=_count(image, "temporal_patch_size", 2),
        mean=tuple(float(value) for value in mean),
        std=tuple(float(value) for value in std),
    )


def _pixels(settings: dict[str, Any], default: PixelRange) -> PixelRange:
    """``min_pixels`` and ``max_pixels`` go before ``size``, as in transformers."""
    size = settings.get("size") or {}
    least = _count(settings, "min_pixels", _count(size, "shortest_edge", default.least))
    most = _count(settings, "max_pixels", _count(size, "longest_edge", default.most))
    if least > most:
        raise InputError(f"between {least} and {most} pixels is no range for an image or video")
    return PixelRange(least, most)


def _video(settings: dict[str, Any], patching: Patching, generation: Generation) -> tuple[VideoBudget, FrameSampling]:
    together = generation.time == "text"
    area = patching.factor**2
    tokens = _count(settings, "max_video_tokens", 768 if together else 128_000)
    pixels = _pixels(settings, PixelRange(128 * area, 768 * area))
    sampling = FrameSampling(
        fps=_positive(settings, "fps", 2.0),
        min_frames=_count(settings, "min_frames", 4),
        max_frames=_count(settings, "max_frames", 768),
        multiple=1 if together else patching.temporal,
    )
    return VideoBudget(pixels, together, tokens if settings.get("cap_pixels_per_frame") else None), sampling
