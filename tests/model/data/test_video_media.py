"""Videos of a row: which frames of a clip come out, and what is refused."""

import io

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.data.errors import InputError
from model.data.video import FrameSampling, Video, read_video, row_media, row_video_shape, sample_frames
from tests.tiny import encoded, picture

STEP = 6  # frame i is a flat grey of value STEP * i


def grey_frames(count, width=64, height=48):
    return [np.full((height, width, 3), STEP * index, np.uint8) for index in range(count)]


def video_bytes(container="mp4", codec="libx264", count=40, rate=10):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 8_000_000
        for pixels in grey_frames(count):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


def animation_bytes(image_format="GIF", count=6, milliseconds=200):
    first, *others = [Image.fromarray(pixels) for pixels in grey_frames(count)]
    return encoded(first, image_format, save_all=True, append_images=others, duration=milliseconds)


def medium(data, **clip):
    return {"kind": "video", "bytes": data, "uri": None, "start": None, "end": None, "fps": None} | clip


def shown(video):
    """Which source frames a video shows."""
    return [round(float(np.asarray(frame).mean()) / STEP) for frame in video.frames]


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "libx264"), ("matroska", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("mpegts", "libx264")],
)
def test_every_container_gives_the_frames_of_a_clip_at_their_times(container, codec):
    data = video_bytes(container, codec)
    whole = read_video(data, FrameSampling(fps=2))
    assert shown(whole) == [0, 6, 11, 17, 22, 28, 33, 39]
    assert whole.timestamps == pytest.approx([0, 0.6, 1.1, 1.7, 2.2, 2.8, 3.3, 3.9], abs=0.01)
    assert whole.fps == pytest.approx(2, rel=0.01)
    clip = read_video(data, FrameSampling(frames=4), start=1, end=3)
    assert shown(clip) == [10, 16, 23, 29]
    assert clip.timestamps == pytest.approx([0, 0.6, 1.3, 1.9], abs=0.01)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP"])
def test_an_animation_is_a_video_timed_by_its_frames(image_format):
    video = read_video(animation_bytes(image_format), FrameSampling())
    assert shown(video) == [0, 1, 2, 3, 4, 5]
    assert video.timestamps == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert video.fps == pytest.approx(5)


def test_the_rows_own_rate_and_clip_go_before_the_setting(rng):
    image = picture(rng)
    row = {
        "id": "r",
        "media": [
            {"kind": "image", "bytes": encoded(image), "uri": None},
            medium(video_bytes(), fps=5.0, start=1.0, end=2.0),
        ],
    }
    first, second = row_media(row, FrameSampling(fps=1))
    assert first.tobytes() == image.tobytes()
    assert isinstance(second, Video)
    assert shown(second) == [10, 12, 14, 17, 19]
    assert row_video_shape(row, 1, FrameSampling(fps=1))[:3] == (5, 64, 48)


def test_sampling_is_qwens_for_even_counts():
    # qwen-vl-utils 0.0.14, smart_nframes: 300 frames at 30 per second, 2 wanted per second, at least 4, even.
    assert len(sample_frames(300, 30, fps=2, min_frames=4, multiple=2)) == 20
    assert len(sample_frames(31, 30, fps=2, min_frames=4, multiple=2)) == 4
    assert len(sample_frames(330, 30, fps=2.3, min_frames=4, multiple=2)) == 24
    assert len(sample_frames(90_000, 30, fps=2, min_frames=4, multiple=2)) == 768
    assert sample_frames(7, 1, frames=7) == [0, 1, 2, 3, 4, 5, 6]


@given(
    count=st.integers(1, 2000),
    source_fps=st.floats(0.1, 240),
    fps=st.none() | st.floats(0.01, 100),
    bounds=st.tuples(st.integers(1, 32), st.integers(1, 64)),
    multiple=st.sampled_from([1, 2]),
)
def test_frames_are_in_order_within_bounds_and_span_the_clip(count, source_fps, fps, bounds, multiple):
    lowest, highest = min(bounds), max(*bounds, 2)
    chosen = sample_frames(count, source_fps, fps=fps, min_frames=lowest, max_frames=highest, multiple=multiple)
    assert chosen == sorted(set(chosen))
    assert 0 <= chosen[0] <= chosen[-1] < count
    assert len(chosen) <= highest
    assert len(chosen) % multiple == 0 or len(chosen) == count == 1
    if len(chosen) > 1:
        assert (chosen[0], chosen[-1]) == (0, count - 1)


def test_frames_are_scaled_down_to_the_bound_of_a_clips_pixels(monkeypatch):
    monkeypatch.setattr("model.data.video.MAX_SAMPLED_PIXELS", 8 * 32 * 24)
    video = read_video(video_bytes(), FrameSampling(frames=8))
    assert {frame.size for frame in video.frames} == {(32, 24)}
    assert row_video_shape({"id": "r", "media": [medium(video_bytes())]}, 0, FrameSampling(frames=8))[:3] == (8, 32, 24)


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("given_medium", "reason"),
    [
        (medium(b""), "empty"),
        (medium(None, uri="s3://bucket/a.mp4"), "only videos whose bytes are in the row"),
        (medium(b"no video at all" * 20), "known format"),
        (medium(PLAYLIST), "known format"),
        (medium(video_bytes()[:1000]), "cannot be decoded"),
        (medium(animation_bytes()[:60]), "cannot be decoded|broken"),
        (medium(video_bytes(), start=9.0), "no frames between"),
        (medium(video_bytes(), fps=0.0), "fps must be positive"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line_naming_the_row(given_medium, reason):
    row = {"id": "film-7", "media": [given_medium]}
    with pytest.raises(InputError, match=rf"row film-7: media\[0\]: .*({reason})") as caught:
        row_media(row)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bound", "value"),
    [
        ("video.MAX_VIDEO_BYTES", 100),
        ("video.MAX_VIDEO_SECONDS", 1.0),
        ("video_files.MAX_SOURCE_FRAMES", 10),
        ("video_files.MAX_IMAGE_PIXELS", 100),
    ],
)
def test_a_video_beyond_a_bound_is_refused(monkeypatch, bound, value):
    monkeypatch.setattr(f"model.data.{bound}", value)
    with pytest.raises(InputError, match=r"limit|more than"):
        read_video(video_bytes(), FrameSampling())


def test_no_torch_is_needed_to_read_videos():
    import subprocess
    import sys

    code = "import sys, model.data.video; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
