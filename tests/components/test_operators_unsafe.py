"""``unsafe`` scores images and frames as NudeNet's own code does, and refuses the classes it is told to."""

import io

import av
import numpy as np
import pytest
from PIL import Image
from skimage import data

from components.curate import onnx_models
from components.curate.engine import apply_recipe
from components.curate.model_sections import Unsafe
from components.curate.recipe import Decode, Schema
from components.curate.unsafe import CLASSES, class_scores, judge
from model.data.errors import InputError
from model.data.schema import image_media, scorer
from model.data.shards import open_dataset, write_dataset

FACES = Unsafe(classes=("FACE_FEMALE", "FACE_MALE"))


@pytest.fixture(scope="module")
def astronaut():
    return Image.fromarray(data.astronaut())


def medium(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return image_media(buffer.getvalue(), image_format="PNG", width=image.width, height=image.height)


def video(frames):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
        file.mux(stream.encode())
    return dict.fromkeys(("uri", "start", "end", "fps", "format", "width", "height", "sha256", "phash")) | {
        "kind": "video",
        "bytes": buffer.getvalue(),
    }


def test_photographs_in_everyday_clothes_pass(astronaut):
    media = [medium(astronaut), medium(Image.fromarray(data.chelsea())), medium(Image.fromarray(data.coffee()))]
    reason, score = judge(media, Unsafe())
    assert reason is None
    assert 0 < score < 0.5


def test_a_class_that_is_listed_is_refused_with_its_name_and_score(astronaut):
    reason, score = judge([medium(Image.fromarray(data.coffee())), medium(astronaut)], FACES)
    assert reason == f"media[1] shows FACE_FEMALE ({score:.2f}; the limit is 0.5)"
    assert score > 0.6
    assert judge([medium(astronaut)], Unsafe(classes=FACES.classes, min_score=0.99)) == (None, score)


def test_the_classes_are_in_the_order_of_the_model(astronaut):
    # NudeNet's own detector, on another resize (OpenCV's), gives this photograph FACE_FEMALE alone.
    scores = dict(zip(CLASSES, class_scores(astronaut), strict=True))
    assert max(scores, key=scores.get) == "FACE_FEMALE"
    assert sorted(scores.values())[-2] < 0.25


def test_frames_of_a_video_are_looked_at(astronaut):
    small = astronaut.resize((256, 256))
    blank = Image.new("RGB", small.size, "white")
    assert judge([video([blank] * 4)], FACES)[0] is None
    assert judge([video([blank, blank, blank, small])], FACES)[0].startswith("media[0] shows FACE_FEMALE")


def test_scores_do_not_depend_on_the_batch_and_the_model_is_loaded_once(astronaut, monkeypatch):
    alone = class_scores(astronaut)
    class_scores(Image.new("RGB", (50, 90)))
    monkeypatch.setattr("onnxruntime.InferenceSession", None)
    assert np.array_equal(class_scores(astronaut), alone)


def test_a_long_strip_takes_no_square_of_its_length(monkeypatch):
    sides = []
    new = Image.new
    monkeypatch.setattr(Image, "new", lambda mode, size, *rest: sides.append(max(size)) or new(mode, size, *rest))
    strip = new("RGB", (200_000, 100), (90, 120, 150))
    assert class_scores(strip).shape == (len(CLASSES),) and max(sides) <= 8192


def test_in_a_recipe_a_row_without_images_passes(tmp_path, astronaut):
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "An astronaut."}]
    text = {"id": "text", "source": "test", "license": "CC0-1.0", "media": [], "messages": turns, "task": "who"}
    text |= {"answers": ["An astronaut."], "scorer": scorer("exact")}
    seen = text | {"id": "seen", "media": [medium(astronaut)]}
    seen["messages"] = [{"role": "user", "content": "<image>\nWho?"}, turns[1]]
    write_dataset(tmp_path / "rows", [text, seen])
    rows = apply_recipe(open_dataset(tmp_path / "rows"), (Schema(), Decode(), FACES), tmp_path / "state").rows
    assert rows.reasons[0] is None
    assert rows.reasons[1].startswith("unsafe: media[0] shows FACE_FEMALE")
    assert rows.fact("unsafe_score")[0] is None


def test_a_missing_wheel_ends_the_step_with_what_to_install():
    with pytest.raises(InputError, match=r"no_such_wheel/model\.onnx is not installed: pip install no-such-wheel"):
        onnx_models.wheel_file("no_such_wheel", "no-such-wheel", "model.onnx")
