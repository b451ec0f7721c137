"""Media of a row: images, and videos as the frames of a clip, evenly sampled. Imports no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from model.data.errors import InputError
from model.data.video_files import Animation, Container, open_video
from model.flash.images import read_image

if TYPE_CHECKING:
    from model.data.schema import Media, Row

MAX_VIDEO_BYTES = 500_000_000
MAX_VIDEO_SECONDS = 4 * 3600.0
MAX_SAMPLED_PIXELS = 500_000_000
"""Pixels of all sampled frames together (1.5 GB); larger frames are scaled down as they are decoded."""


@dataclass
class Video:
    """The sampled frames of a clip.

    Attributes:
        frames: RGB, upright, all of one size.
        timestamps: seconds of each frame from the start of the clip.
        fps: sampled frames per second of the clip.
    """

    frames: list[Image.Image]
    timestamps: list[float]
    fps: float


class VideoShape(NamedTuple):
    """What ``read_video`` would give: number of frames, their size in pixels, and their seconds in the clip."""

    frames: int
    width: int
    height: int
    timestamps: tuple[float, ...]


@dataclass(frozen=True)
class FrameSampling:
    """Which frames of a clip are taken.

    Attributes:
        fps: frames per second wanted; None takes ``max_frames`` evenly, or all where there are fewer.
        frames: exact number of frames wanted, in place of ``fps`` and the bounds.
        min_frames, max_frames: bounds of the number of frames.
        multiple: the number of frames is rounded down to a multiple of this where the clip has so many.
    """

    fps: float | None = None
    frames: int | None = None
    min_frames: int = 1
    max_frames: int = 768
    multiple: int = 1

    def indices(self, count: int, source_fps: float) -> list[int]:
        """``sample_frames`` with these settings."""
        return sample_frames(
            count,
            source_fps,
            fps=self.fps,
            frames=self.frames,
            min_frames=self.min_frames,
            max_frames=self.max_frames,
            multiple=self.multiple,
        )


def sample_frames(
    count: int,
    source_fps: float,
    *,
    fps: float | None = None,
    frames: int | None = None,
    min_frames: int = 1,
    max_frames: int = 768,
    multiple: int = 1,
) -> list[int]:
    """Indices of evenly spread frames, the first and the last among them: ``linspace(0, count - 1, n).round()``.

    With ``fps``, n = count / source_fps * fps within the bounds, as in Qwen's ``smart_nframes`` (there ``multiple``
    is 2). A clip never gives a frame twice: a shorter one gives all it has.
    """
    if count < 1:
        raise ValueError("a clip has at least one frame")
    if frames is not None:
        wanted = min(frames, count)
    else:
        rate = count if fps is None else count / source_fps * fps
        lowest, highest = -(-min_frames // multiple) * multiple, max_frames // multiple * multiple
        wanted = int(min(max(rate, lowest), highest, count))
    wanted = max(wanted // multiple * multiple, min(multiple, count))
    return [int(index) for index in np.linspace(0, count - 1, wanted).round()]


def row_media(row: "Row", sampling: FrameSampling | None = None) -> "list[Image.Image | Video]":
    """The decoded media of a row in order; a medium's own ``fps`` goes before that of ``sampling``.

    Raises:
        InputError: names the row whose medium cannot be read, or is not in the row.
    """
    media = []
    for number, medium in enumerate(row["media"]):
        with _naming(row, number):
            media.append(read_medium(medium, sampling or FrameSampling()))
    return media


def row_video_shape(row: "Row", number: int, sampling: FrameSampling | None = None) -> VideoShape:
    """Frames and pixels of the video ``row["media"][number]``; decodes one frame of a container.

    Raises:
        InputError: names the row whose video cannot be read, or is not in the row.
    """
    with _naming(row, number):
        return _shape(row["media"][number], sampling or FrameSampling())


@contextmanager
def _naming(row: "Row", number: int) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"row {row['id']}: media[{number}]: {error}") from error


def read_medium(medium: "Media", sampling: FrameSampling) -> "Image.Image | Video":
    """Decode one medium whose bytes are in the row.

    Raises:
        InputError: the bytes are elsewhere, broken, of an unknown format or too large.
    """
    if medium["kind"] == "video":
        return _read(_clip(medium, sampling))
    if medium["bytes"] is None:
        raise InputError("only images whose bytes are in the row can be read")
    return read_image(medium["bytes"])


class _Clip(NamedTuple):
    data: bytes
    start: float
    end: float | None
    sampling: FrameSampling


def _clip(medium: "Media", sampling: FrameSampling) -> _Clip:
    data = medium["bytes"]
    if data is None:
        raise InputError("only videos whose bytes are in the row can be read")
    if not data:
        raise InputError("video is empty (0 bytes)")
    if len(data) > MAX_VIDEO_BYTES:
        raise InputError(f"video has {len(data)} bytes; the limit is {MAX_VIDEO_BYTES}")
    if (fps := medium["fps"]) is not None:
        if not 0 < fps < float("inf"):
            raise InputError(f"fps must be positive, not {fps}")
        sampling = replace(sampling, fps=fps)
    return _Clip(data, medium["start"] or 0.0, medium["end"], sampling)


def read_video(data: bytes, sampling: FrameSampling, *, start: float | None = None, end: float | None = None) -> Video:
    """Decode the clip from ``start`` to ``end`` (seconds) of an encoded video.

    Raises:
        InputError: empty, too large, of an unknown format, broken, or without a frame in the clip.
    """
    medium = {"kind": "video", "bytes": data, "start": start, "end": end, "fps": None}
    return _read(_clip(medium, sampling))  # type: ignore[arg-type]


def _read(clip: _Clip) -> Video:
    with open_video(clip.data) as source:
        times, chosen, fps = _choose(clip, source)
        size = _scaled(source.width, source.height, len(chosen))
        frames = [frame if frame.size == size else frame.resize(size) for frame in source.decode(chosen)]
    if len(frames) != len(chosen):
        raise InputError(f"video is broken: {len(frames)} of {len(chosen)} frames can be decoded")
    return Video(frames, [times[index] - clip.start for index in chosen], fps)


def _shape(medium: "Media", sampling: FrameSampling) -> VideoShape:
    if medium["kind"] != "video":
        raise InputError("is not a video")
    clip = _clip(medium, sampling)
    with open_video(clip.data) as source:
        times, chosen, _ = _choose(clip, source)
        seconds = tuple(times[index] - clip.start for index in chosen)
        return VideoShape(len(chosen), *_scaled(source.width, source.height, len(chosen)), seconds)


def _choose(clip: _Clip, source: Container | Animation) -> tuple[list[float], list[int], float]:
    """Times of all frames, the chosen ones' indices, and the rate of the chosen ones."""
    times, duration = source.times, source.duration
    if duration > MAX_VIDEO_SECONDS:
        raise InputError(f"video lasts {duration:.0f} s; the limit is {MAX_VIDEO_SECONDS:.0f} s")
    end = duration if clip.end is None else min(clip.end, duration)
    inside = [index for index, time in enumerate(times) if clip.start <= time < end]
    if not inside:
        raise InputError(f"video has no frames between {clip.start} s and {end:.3f} s")
    source_fps = len(inside) / (end - clip.start)
    chosen = [inside[index] for index in clip.sampling.indices(len(inside), source_fps)]
    return times, chosen, len(chosen) / (end - clip.start)


def _scaled(width: int, height: int, frames: int) -> tuple[int, int]:
    scale = min(1.0, (MAX_SAMPLED_PIXELS / (frames * width * height)) ** 0.5)
    return max(1, int(width * scale)), max(1, int(height * scale))
