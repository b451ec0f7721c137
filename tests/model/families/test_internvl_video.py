"""Videos in InternVL rows: lines of frames, one tile each, in the order of their placeholders."""

import io

import av
import numpy as np
import pytest

from model.data.errors import InputError
from model.data.video import Video
from model.flash.images import tile_image
from tests.tiny import TILE, picture, question_row

ROWS = 16  # visual tokens of a tile


def film(count, rate=10):
    """MP4 bytes of ``count`` frames of noise, two tiles wide."""
    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 2 * TILE, TILE, "yuv420p"
        for _ in range(count):
            pixels = rng.integers(0, 256, (TILE, 2 * TILE, 3), dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def ten_seconds():
    return film(100)


def film_row(data, content, images=(), **clip):
    """A row whose media are the images and then the film."""
    row = question_row("film", list(images), "A dog.")
    medium = dict.fromkeys(row["media"][0] if row["media"] else ("uri",)) | {"kind": "video", "bytes": data}
    row["media"].append(medium | {"start": None, "end": None, "fps": None} | clip)
    row["messages"][0]["content"] = content
    return row


def shown(processor, sample):
    """The text of a sample, a tile's placeholders as one ``[T]``."""
    text = processor.tokenizer.decode(sample.input_ids, skip_special_tokens=False)
    return text.replace("<IMG_CONTEXT>" * ROWS, "[T]").split("user\n")[1].split("<|im_end|>")[0]


def test_a_video_is_numbered_lines_of_frames_with_one_tile_each(tiny_model, ten_seconds):
    _, processor = tiny_model
    sample = processor.sample(film_row(ten_seconds, "<video>\nWhat?", fps=1.0))
    frames = "\n".join(f"Frame{number}: <img>[T]</img>" for number in range(1, 11))
    assert shown(processor, sample) == f"{frames}\nWhat?"
    assert sample.media["tiles"].shape == (10, TILE, TILE, 3)
    assert len({tile.tobytes() for tile in sample.media["tiles"]}) == 10


@pytest.mark.parametrize(("fps", "frames"), [(None, 32), (0.1, 8), (2.0, 20), (10.0, 32)])
def test_a_video_has_8_to_32_frames(tiny_model, ten_seconds, fps, frames):
    _, processor = tiny_model
    row = film_row(ten_seconds, "<video>", fps=fps)
    assert processor.sample(row).units == frames


def test_a_short_video_gives_the_frames_it_has(tiny_model):
    _, processor = tiny_model
    assert processor.sample(film_row(film(3), "<video>")).units == 3


def test_images_beside_a_video_keep_their_tiles_and_their_places(tiny_model, ten_seconds, rng):
    _, processor = tiny_model
    image = picture(rng, 2, 2)
    row = film_row(ten_seconds, "<video> then <image>", [image], start=0.0, end=0.25)
    sample = processor.sample(row, jpeg_quality=None)
    frames = "\n".join(f"Frame{number}: <img>[T]</img>" for number in range(1, 4))
    assert shown(processor, sample) == f"{frames} then <img>{'[T]' * 5}</img>"
    assert np.array_equal(sample.media["tiles"][3:], tile_image(image, processor.tiling.shared_by(1)))


@pytest.mark.parametrize("content", ["<video>", "<image><video>", "<video> and <image>"])
def test_a_row_measures_what_its_sample_has(tiny_model, ten_seconds, rng, content):
    _, processor = tiny_model
    images = [picture(rng, 3, 1)] if "<image>" in content else []
    row = film_row(ten_seconds, content, images, fps=1.5)
    assert processor.measure(row) == processor.sample(row).size


def test_a_question_about_a_video_is_answered(tiny_model, ten_seconds):
    from model.families.generation import answer_rows

    model, processor = tiny_model
    rows = [film_row(ten_seconds, "<video>\nWhat?", fps=1.0), film_row(film(9), "<video>\nWhat?")]
    together = answer_rows(model, processor, rows, max_new_tokens=4)
    assert together == [answer_rows(model, processor, [row], max_new_tokens=4)[0] for row in rows]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("<video> <video>", "row film: 2 <video> placeholders for 1 videos"),
        ("What?", "row film: 0 <video> placeholders for 1 videos"),
        ("<image> <video>", "row film: 1 <image> placeholders for 0 images"),
    ],
)
def test_placeholders_and_media_must_agree(tiny_model, ten_seconds, content, words):
    _, processor = tiny_model
    row = film_row(ten_seconds, content)
    for use in (processor.sample, processor.measure):
        with pytest.raises(InputError, match=words):
            use(row)


def test_a_broken_video_names_its_row(tiny_model):
    _, processor = tiny_model
    for use in (processor.sample, processor.measure, processor.question):
        with pytest.raises(InputError, match=r"row film: media\[0\]: not a video"):
            use(film_row(b"nothing" * 50, "<video>"))


def test_the_clip_of_a_conversation_may_be_given_as_frames(tiny_model, rng):
    _, processor = tiny_model
    video = Video([picture(rng), picture(rng)], [0.0, 1.0], 1.0)
    sample = processor.conversation([{"role": "user", "content": "<video>\nWhat?"}], [video], generate=True)
    assert shown(processor, sample) == "Frame1: <img>[T]</img>\nFrame2: <img>[T]</img>\nWhat?"
