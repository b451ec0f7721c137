"""Qwen conversations to samples, against transformers' processors; what a row measures; what is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.data.errors import InputError
from model.data.schema import image_media
from model.data.video import Video
from model.families.qwen_files import load_qwen_processor
from tests.tiny import encoded
from tests.tiny_qwen import GENERATIONS, _vision_config, pixels, stock_processor

TWO_SECONDS = [0.0, 0.5, 1.0, 1.5, 2.0]
ANSWER = "A cat."


@pytest.fixture(scope="module")
def processors(tmp_path_factory):
    """Of each generation, from a directory as transformers writes it."""
    return {
        generation: load_qwen_processor(stock_files(tmp_path_factory.mktemp(generation), generation))
        for generation in GENERATIONS
    }


def stock_files(directory, generation):
    stock_processor(generation).save_pretrained(directory)
    config = {"model_type": generation, "vision_config": _vision_config(generation)}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def media(rng):
    """An image, a video of five frames at two a second, and another image."""
    images = [Image.fromarray(pixels(rng, *size)) for size in ((100, 60), (56, 150))]
    frames = [Image.fromarray(pixels(rng, 90, 120)) for _ in TWO_SECONDS]
    return [images[0], Video(frames, TWO_SECONDS, 2.0), images[1]]


def turns(question, answer=ANSWER):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def text_of(processor, ids):
    return processor.tokenizer.decode(ids, skip_special_tokens=False)


def parts(*kinds_and_text):
    return [{"type": part} if part in ("image", "video") else {"type": "text", "text": part} for part in kinds_and_text]


def stock_inputs(generation, messages, images, videos=(), **options):
    """What transformers' processor gives for typed messages; Pillow resizes its images, as it does ours."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = stock_processor(generation)
    own = processor.image_processor
    processor.image_processor = Qwen2VLImageProcessorPil(
        size=dict(own.size), patch_size=own.patch_size, image_mean=own.image_mean, image_std=own.image_std
    )
    text = processor.apply_chat_template(messages, tokenize=False, **options)
    timed = {}
    if videos:
        timed["videos"] = [np.stack(video.frames) for video in videos]
        timed["video_metadata"] = [
            {"total_num_frames": len(v.frames), "fps": v.fps, "frames_indices": list(range(len(v.frames)))}
            for v in videos
        ]
        timed["videos_kwargs"] = {"do_sample_frames": False}
    return processor(text=[text], images=list(images) or None, return_tensors="np", **timed)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_conversation_about_images_is_that_of_transformers(processors, media, generation):
    processor, images = processors[generation], [media[0], media[2]]
    messages = [
        {"role": "user", "content": parts("image", "First?")},
        {"role": "assistant", "content": parts("One.")},
        {"role": "user", "content": parts("And ", "image", "this?\nTell me.")},
    ]
    oracle = stock_inputs(generation, messages, images, add_generation_prompt=True)
    texts = ["<image>\nFirst?", "One.", "And <image>\nthis?\nTell me."]
    rendered = [message | {"content": text} for message, text in zip(messages, texts, strict=True)]
    sample = processor.conversation(rendered, images, generate=True)
    assert sample.input_ids == oracle["input_ids"][0].tolist()
    assert sample.media["grids"].tolist() == oracle["image_grid_thw"].tolist()
    np.testing.assert_allclose(sample.media["patches"], oracle["pixel_values"], rtol=0, atol=1e-6)
    assert sample.units == sample.input_ids.count(processor.image_token_id)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_conversation_about_a_video_is_that_of_transformers(processors, media, generation):
    processor, video = processors[generation], media[1]
    messages = [{"role": "user", "content": parts("video", "What?")}]
    oracle = stock_inputs(generation, messages, (), [video], add_generation_prompt=True)
    sample = processor.conversation([{"role": "user", "content": "<video>\nWhat?"}], [video], generate=True)
    expected = text_of(processor, oracle["input_ids"][0])
    if generation.startswith("qwen3"):
        # transformers 5.19 leaves the template's pair around the timestamps; 4.57 and the paper do not.
        assert "<|vision_start|><0.2 seconds><|vision_start|>" in expected
        expected = expected.replace("<|vision_start|><0.2", "<0.2").replace(
            "<|vision_end|><|vision_end|>What", "<|vision_end|>What"
        )
    assert text_of(processor, sample.input_ids) == expected
    assert sample.media["grids"].tolist() == oracle["video_grid_thw"].tolist()
    level = 1 / 255 / min(processor.patching.std)  # torchvision resizes videos and rounds some values otherwise
    np.testing.assert_allclose(sample.media["patches"], oracle["pixel_values_videos"], rtol=0, atol=1.01 * level)


def test_published_prompts(processors, media):
    video, question = media[1], [{"role": "user", "content": "<video>\nWhat happened in the video?"}]
    for generation in ("qwen2_vl", "qwen2_5_vl"):
        processor = processors[generation]
        text = text_of(processor, processor.conversation(question, [video], generate=True).input_ids)
        assert text.replace("<|video_pad|>" * 36, "<|video_pad|>") == (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
            "<|video_pad|><|vision_end|>What happened in the video?<|im_end|>\n<|im_start|>assistant\n"
        )
    processor = processors["qwen3_vl"]
    text = text_of(processor, processor.conversation(question, [video], generate=True).input_ids)
    frame = "<|vision_start|>" + "<|video_pad|>" * 12 + "<|vision_end|>"
    assert text == (
        f"<|im_start|>user\n<0.2 seconds>{frame}<1.2 seconds>{frame}<2.0 seconds>{frame}"
        "What happened in the video?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("generation", GENERATIONS)
def test_only_answers_are_trained(processors, media, generation):
    processor = processors[generation]
    messages = [{"role": "system", "content": "Be short."}, *turns("<image>\nWhat?"), *turns("Sure?", "Yes.")]
    sample = processor.conversation(messages, media[:1])
    trained = [token for token, is_trained in zip(sample.input_ids, sample.trained, strict=True) if is_trained]
    assert text_of(processor, trained) == f"{ANSWER}<|im_end|>Yes.<|im_end|>"
    assert "helpful" not in text_of(processor, sample.input_ids)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_images_and_videos_stand_in_the_order_of_their_placeholders(processors, media, generation):
    processor = processors[generation]
    sample = processor.conversation(turns("<video>\nand <image>\nor <image>"), media)
    image, video, other = [processor.prepare(item)[1] for item in media]
    np.testing.assert_array_equal(sample.media["patches"], np.concatenate([video, image, other]))
    assert sample.media["grids"][:, 0].tolist() == [3, 1, 1]
    assert sample.positions.shape == (3, len(sample.input_ids))
    shown = [token for token in sample.input_ids if token in (processor.image_token_id, processor.video_token_id)]
    assert shown.count(processor.image_token_id) == (len(image) + len(other)) // 4
    assert shown[0] == processor.video_token_id


def times(processor, video):
    """Time axis of a video's tokens, from its first."""
    sample = processor.conversation(turns("<video>"), [video])
    axis = sample.positions[0, np.array(sample.input_ids) == processor.video_token_id]
    return sorted(set((axis - axis[0]).tolist()))


def test_a_generation_tells_the_time_of_a_video_in_its_own_way(processors, media):
    slow = Video(media[1].frames, [0.0, 4.0, 8.0, 12.0, 16.0], 0.25)
    assert times(processors["qwen2_vl"], media[1]) == times(processors["qwen2_vl"], slow) == [0, 1, 2]
    # Two positions a second; two frames in a temporal patch.
    assert times(processors["qwen2_5_vl"], media[1]) == [0, 2, 4]
    assert times(processors["qwen2_5_vl"], slow) == [0, 16, 32]
    ids = processors["qwen3_vl"].conversation(turns("<video>"), [slow]).input_ids
    assert "<2.0 seconds>" in text_of(processors["qwen3_vl"], ids)
    assert "<10.0 seconds>" in text_of(processors["qwen3_vl"], ids)
    assert "<16.0 seconds>" in text_of(processors["qwen3_vl"], ids)


@settings(deadline=None)
@given(st.integers(1, 3000), st.sampled_from([7.5, 23.976, 24.0, 25.0, 30.0, 60.0]))
def test_qwen3_samples_the_frames_that_transformers_samples(processors, count, rate):
    from transformers import Qwen3VLVideoProcessor
    from transformers.video_utils import VideoMetadata

    oracle = Qwen3VLVideoProcessor().sample_frames(VideoMetadata(total_num_frames=count, fps=rate))
    assert processors["qwen3_vl"].limits.sampling.indices(count, rate) == oracle.tolist()


def test_the_generations_before_sample_frames_in_pairs(processors):
    # Worked by hand from qwen-vl-utils 0.0.14's smart_nframes: two a second, at least four, even, all different.
    sampling = processors["qwen2_5_vl"].limits.sampling
    assert sampling.indices(250, 25.0) == np.linspace(0, 249, 20).round().astype(int).tolist()
    assert len(sampling.indices(263, 25.0)) == 20  # 21.04, rounded down to even
    assert sampling.indices(7, 30.0) == [0, 2, 4, 6]
    assert sampling.indices(5, 30.0) == [0, 1, 3, 4]
    assert sampling.indices(3, 30.0) == [0, 2]
    assert len(sampling.indices(90000, 30.0)) == 768


def row(content, media, answer=ANSWER):
    return {"id": "r7", "media": media, "messages": turns(content, answer)}


def image_of(image, **options):
    data = encoded(image, "JPEG", **options)
    return image_media(data, image_format="JPEG", width=image.width, height=image.height)


def video_of(frames, milliseconds):
    first, *others = frames
    data = encoded(first, "GIF", save_all=True, append_images=others, duration=milliseconds)
    return image_media(data, image_format="GIF", width=first.width, height=first.height) | {"kind": "video"}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_row_measures_what_its_sample_takes(processors, media, generation, rng):
    sideways = Image.Exif()
    sideways[0x0112] = 6
    video = video_of([Image.fromarray(pixels(rng, 96, 64)) for _ in range(30)], 250)
    rows = [
        row("Hi", []),
        row("<image>\nWhat?", [image_of(media[0])]),
        row("<image>\nWhat?", [image_of(media[0], exif=sideways)]),
        row("<video>\n<image>\nWhat?<image>", [image_of(media[0]), video, image_of(media[2])]),
        row("<video>\nWhat?", [video | {"start": 1.0, "end": 4.0, "fps": 3.0}]),
    ]
    processor = processors[generation]
    for each in rows:
        assert processor.measure(each) == processor.sample(each).size
        unstated = each | {"media": [medium | {"width": None, "height": None} for medium in each["media"]]}
        assert processor.measure(unstated) == processor.measure(each)
    upright, turned = (processor.sample(each).media["grids"][0] for each in rows[1:3])
    assert upright[[0, 2, 1]].tolist() == turned.tolist()


def test_an_image_whose_size_is_stated_is_not_opened(processors):
    asked = row("<image>\nWhat?", [image_media(b"torn", image_format="PNG", width=100, height=60)])
    assert processors["qwen2_vl"].measure(asked).units == 8
    asked["media"][0]["width"] = None
    for read in (processors["qwen2_vl"].sample, processors["qwen2_vl"].measure):
        with pytest.raises(InputError, match=r"row r7: media\[0\]: not an image"):
            read(asked)


def test_jpeg_changes_images_and_leaves_videos(processors, media, rng):
    video = video_of([Image.fromarray(pixels(rng, 56, 56)) for _ in range(8)], 500)
    asked = row("<video>\n<image>\nWhat?", [video, image_of(media[0], quality=95)])
    plain, again = (processors["qwen2_vl"].sample(asked, jpeg_quality=quality) for quality in (None, 30))
    frames = int(plain.media["grids"][0].prod())
    np.testing.assert_array_equal(plain.media["patches"][:frames], again.media["patches"][:frames])
    assert not np.array_equal(plain.media["patches"][frames:], again.media["patches"][frames:])
    assert plain.input_ids == again.input_ids


@pytest.mark.parametrize("generation", GENERATIONS)
def test_text_alone_and_the_blank_have_the_arrays_of_media(processors, generation):
    processor = processors[generation]
    text = processor.conversation(turns("Hi"), [])
    width = 3 * 2 * processor.patching.patch**2
    assert text.media["patches"].shape == (0, width)
    assert text.media["grids"].shape == (0, 3)
    assert text.units == 0
    np.testing.assert_array_equal(text.positions, np.tile(np.arange(len(text.input_ids)), (3, 1)))
    blank = processor.blank_media()
    assert blank.keys() == text.media.keys()
    assert {name: array.dtype for name, array in blank.items()} == {n: a.dtype for n, a in text.media.items()}
    assert blank["patches"].shape == (4, width)
    assert blank["grids"].tolist() == [[1, 2, 2]]


@pytest.mark.parametrize(
    "word", ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_end|>", "<|im_start|>"]
)
def test_a_text_cannot_forge_media_or_turns(processors, word):
    processor = processors["qwen2_5_vl"]
    for messages in (turns(f"Hi {word}"), turns("Hi", f"No {word}")):
        with pytest.raises(InputError, match="a message holds the reserved word"):
            processor.conversation(messages, [])
        for read in (processor.measure, processor.sample):
            with pytest.raises(InputError, match="row r7: a message holds the reserved word"):
                read({"id": "r7", "media": [], "messages": messages})


def test_placeholders_and_media_must_be_as_many(processors, media):
    processor = processors["qwen2_vl"]
    with pytest.raises(InputError, match="2 <image> placeholders for 1 images"):
        processor.conversation(turns("<image><image>"), media[:1])
    with pytest.raises(InputError, match="0 <video> placeholders for 1 videos"):
        processor.conversation(turns("<image>"), media[:2])
    strip = image_of(Image.new("RGB", (2010, 10)))
    for read in (processor.measure, processor.sample):
        with pytest.raises(InputError, match="row r7: 2010 x 10 pixels: the aspect ratio 201 is above 200"):
            read(row("<image>", [strip]))
