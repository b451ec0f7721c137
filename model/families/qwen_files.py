"""The processor of a Qwen-VL directory, read and written. Imports neither torch nor transformers."""

from pathlib import Path
from typing import Any

from model.data.artifact import write_atomic
from model.data.errors import InputError
from model.data.video import FrameSampling
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
    try:
        vision = config["vision_config"]
        if generation.time == "seconds":
            # 4 is what transformers takes where the configuration is silent; the published ones say 2.
            per_second = float(vision.get("tokens_per_second", 4))
            generation = Generation(generation.system_prompt, generation.time, per_second)
        image, video = _settings(directory)
        patching = _patching(image, generation)
        for name, own in (("patch_size", patching.patch), ("spatial_merge_size", patching.merge)):
            if vision.get(name, own) != own:
                raise InputError(f"{directory}: {name} is {vision[name]} in config.json, {own} for the images")
        limits = QwenLimits(_pixels(image, PixelRange(56**2, 1280 * 28**2)), *_video(video, patching, generation))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{directory}: configuration: {type(error).__name__}: {error}") from error
    files = {name: (directory / name).read_text(encoding="utf-8") for name in CARRIED if (directory / name).is_file()}
    return QwenProcessor(load_tokenizer(directory), generation, patching, limits, files)


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


def _patching(image: dict[str, Any], generation: Generation) -> Patching:
    clip = generation.time != "text"
    return Patching(
        patch=image.get("patch_size", 14 if clip else 16),
        merge=image.get("merge_size", 2),
        temporal=image.get("temporal_patch_size", 2),
        mean=tuple(image.get("image_mean", CLIP_MEAN if clip else (0.5,) * 3)),
        std=tuple(image.get("image_std", CLIP_STD if clip else (0.5,) * 3)),
    )


def _pixels(settings: dict[str, Any], default: PixelRange) -> PixelRange:
    """``min_pixels`` and ``max_pixels`` go before ``size``, as in transformers."""
    size = settings.get("size") or {}
    least = settings.get("min_pixels") or size.get("shortest_edge") or default.least
    most = settings.get("max_pixels") or size.get("longest_edge") or default.most
    if not 0 < least <= most:
        raise InputError(f"between {least} and {most} pixels is no range for an image or video")
    return PixelRange(int(least), int(most))


def _video(settings: dict[str, Any], patching: Patching, generation: Generation) -> tuple[VideoBudget, FrameSampling]:
    together = generation.time == "text"
    area = patching.factor**2
    capped = settings.get("max_video_tokens", 768 if together else 128_000)
    budget = VideoBudget(
        _pixels(settings, PixelRange(128 * area, 768 * area)),
        together,
        capped if settings.get("cap_pixels_per_frame") else None,
    )
    sampling = FrameSampling(
        fps=settings.get("fps") or 2.0,
        min_frames=settings.get("min_frames", 4),
        max_frames=settings.get("max_frames", 768),
        multiple=1 if together else patching.temporal,
    )
    return budget, sampling
