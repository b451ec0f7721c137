"""Qwen processors read from directories as they were published, and written back."""

import json

import pytest

from model.data.errors import InputError
from model.families.qwen_files import IMAGES, PROCESSOR, VIDEOS, load_qwen_processor, save_qwen_processor
from model.families.qwen_images import PixelRange
from tests.tiny_qwen import GENERATIONS, _vision_config, qwen_tokenizer, stock_processor


def published(directory, generation, **images):
    """A directory as it was published: settings of images in a file of their own."""
    (directory / "tokenizer.json").write_text(qwen_tokenizer().to_str())
    config = {"model_type": generation, "vision_config": _vision_config(generation)}
    (directory / "config.json").write_text(json.dumps(config))
    patch = 16 if generation.startswith("qwen3") else 14
    settings = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2} | images
    (directory / IMAGES).write_text(json.dumps(settings))
    return directory


def test_published_directories_are_read(tmp_path):
    clip = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    processor = load_qwen_processor(published(tmp_path, "qwen2_5_vl", min_pixels=3136, max_pixels=12845056, **clip))
    assert processor.limits.image == PixelRange(3136, 16384 * 28**2)
    assert processor.patching.mean == tuple(clip["image_mean"])
    # Without settings of video: 128 to 768 tokens a frame, two frames a second, 4 to 768 frames in pairs.
    assert processor.limits.video.pixels == PixelRange(128 * 28**2, 768 * 28**2)
    sampling = processor.limits.sampling
    assert (sampling.fps, sampling.min_frames, sampling.max_frames, sampling.multiple) == (2.0, 4, 768, 2)
    assert processor.generation.tokens_per_second == 2
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}
    published(tmp_path, "qwen3_vl", **half)
    video = {"size": {"shortest_edge": 4096, "longest_edge": 25165824}, "fps": 2, "cap_pixels_per_frame": True}
    (tmp_path / VIDEOS).write_text(json.dumps(video))
    processor = load_qwen_processor(tmp_path)
    assert processor.limits.image == PixelRange(65536, 16777216)
    assert processor.limits.video.pixels == PixelRange(4096, 25165824)
    assert processor.limits.video.together
    assert processor.limits.video.max_tokens == 768
    assert processor.patching.mean == (0.5, 0.5, 0.5)
    assert processor.generation.system_prompt is None


def test_a_saved_processor_is_the_loaded_one(tmp_path):
    for generation in GENERATIONS:
        directory, saved = tmp_path / generation, tmp_path / f"{generation}-saved"
        stock_processor(generation).save_pretrained(directory)
        (directory / "config.json").write_text((published(tmp_path, generation) / "config.json").read_text())
        # transformers 5 keeps the settings of images and videos in one file.
        assert {"image_processor", "video_processor"} <= json.loads((directory / PROCESSOR).read_text()).keys()
        assert not (directory / IMAGES).exists()
        processor = load_qwen_processor(directory)
        save_qwen_processor(processor, saved)
        (saved / "config.json").write_bytes((directory / "config.json").read_bytes())
        names = {path.name for path in directory.iterdir()}
        assert {path.name for path in saved.iterdir()} == names
        assert all(
            (saved / name).read_bytes() == (directory / name).read_bytes() for name in names - {"tokenizer.json"}
        )
        again = load_qwen_processor(saved)
        assert (again.limits, again.patching, again.generation) == (
            processor.limits,
            processor.patching,
            processor.generation,
        )
        question = [{"role": "user", "content": "What <|box_start|>is\n\n this?"}]
        ids = [each.conversation(question, [], generate=True).input_ids for each in (processor, again)]
        assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", {"model_type": "llava"}, "model_type is 'llava', not a Qwen-VL's"),
        ("config.json", {"vision_config": {"patch_size": 16}}, "patch_size is 16 in config.json, 14 for the images"),
        ("config.json", {"vision_config": None}, "broken configuration: "),
        (IMAGES, {"min_pixels": 5000, "max_pixels": 4000}, "between 5000 and 4000 pixels is no range"),
        (IMAGES, {"size": "large"}, "broken configuration: "),
        (IMAGES, {"patch_size": 0}, "patch_size"),
        (IMAGES, {"image_std": [0.5, 0.0, 0.5]}, "image_std"),
        (IMAGES, {"image_mean": [0.5]}, "image_mean"),
        (VIDEOS, {"max_frames": 0}, "max_frames"),
        (VIDEOS, {"fps": -1}, "fps"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(tmp_path, name, change, message):
    published(tmp_path, "qwen2_vl")
    (tmp_path / VIDEOS).write_text("{}")
    path = tmp_path / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message) as refused:
        load_qwen_processor(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["config.json", IMAGES, "tokenizer.json"])
def test_a_missing_file_is_named(tmp_path, name):
    (published(tmp_path, "qwen2_vl") / name).unlink()
    with pytest.raises(InputError, match=f"{name}: no such file"):
        load_qwen_processor(tmp_path)


def test_a_tokenizer_without_the_special_tokens_is_refused(tmp_path, tokenizer):
    published(tmp_path, "qwen2_vl")
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    with pytest.raises(InputError, match=r"no token <\|vision_start\|>"):
        load_qwen_processor(tmp_path)
