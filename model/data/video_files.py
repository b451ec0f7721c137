"""Encoded videos: their frame times without decoding, and chosen frames. Imports no torch.

Containers (MP4, MOV, Matroska, WebM, AVI, MPEG) are read by PyAV, animated GIF and WebP by Pillow. The container format
is told from the first bytes and handed to the library: its own guess would also take playlists, which open other files.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import av
from PIL import Image, UnidentifiedImageError

from model.data.errors import InputError
from model.flash.images import MAX_IMAGE_PIXELS

if TYPE_CHECKING:
    from av.container import InputContainer

MAX_SOURCE_FRAMES = 500_000
MAX_ANIMATION_FRAMES = 5_000
_STILL_SECONDS = 0.1  # of an animation's frame that states no duration, as browsers show it


@contextmanager
def open_video(data: bytes) -> "Iterator[Container | Animation]":
    """A video whose ``times`` [s], ``duration`` [s], ``width``, ``height`` and ``decode(indices)`` are ready.

    Raises:
        InputError: of an unknown format, broken, or too large.
    """
    try:
        if data[:4] == b"GIF8" or data[:4] + data[8:12] == b"RIFFWEBP":
            yield Animation(data)
        else:
            yield Container(data)
    except InputError:
        raise
    except av.FFmpegError as error:
        raise InputError(f"video cannot be decoded: {error.strerror}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"video cannot be decoded: {str(error) or repr(error)}") from error


def _container_format(data: bytes) -> str:
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return "mp4"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if data[:4] + data[8:12] == b"RIFFAVI ":
        return "avi"
    if data[:4] == b"\0\0\x01\xba":
        return "mpeg"
    if data[:1] == b"G" and data[188:189] == b"G":
        return "mpegts"
    raise InputError("not a video of a known format (MP4, MOV, Matroska, WebM, AVI, MPEG, animated GIF or WebP)")


class Container:
    """A file that PyAV reads: packets give the times, only the chosen frames are kept."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.format = _container_format(data)
        with self._open() as file:
            stream = file.streams.video[0]
            self.stamps = sorted(_stamps(file))
            tick = float(stream.time_base or 1 / 90_000)
            rate = float(stream.average_rate or 1)
        if not self.stamps:
            raise InputError("video has no frames")
        self.times = [(stamp - self.stamps[0]) * tick for stamp in self.stamps]
        between = self.times[-1] / (len(self.times) - 1) if len(self.times) > 1 else 1 / rate
        self.duration = self.times[-1] + between
        first = next(self._frames(self.stamps[:1], seek=False), None)
        if first is None:
            raise InputError("video has no frames that can be decoded")
        self.width, self.height = first.size

    @contextmanager
    def _open(self) -> "Iterator[InputContainer]":
        with av.open(io.BytesIO(self.data), format=self.format, options={"protocol_whitelist": "none"}) as file:
            if not file.streams.video:
                raise InputError("video file has no video stream")
            context = file.streams.video[0].codec_context
            _check_pixels(context.width, context.height)
            yield file

    def decode(self, indices: list[int]) -> Iterator[Image.Image]:
        """The frames of these indices, in order."""
        wanted = [self.stamps[index] for index in indices]
        # Streams without an index cannot be entered in the middle.
        return self._frames(wanted, seek=self.format not in ("mpeg", "mpegts") and wanted[0] != self.stamps[0])

    def keyframes(self) -> list[float]:
        """Seconds of the frames that need no other frame to be decoded, in order; read from the packets."""
        with self._open() as file:
            packets = file.demux(file.streams.video[0])
            stamps = sorted(packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None)
            tick = float(file.streams.video[0].time_base or 1 / 90_000)
        return [(stamp - self.stamps[0]) * tick for stamp in stamps]

    def _frames(self, wanted: list[int], *, seek: bool) -> Iterator[Image.Image]:
        with self._open() as file:
            stream = file.streams.video[0]
            if seek:
                file.seek(wanted[0], stream=stream)
            place = 0
            for number, frame in enumerate(file.decode(stream)):
                if seek and number == 0 and frame.pts is not None and frame.pts > wanted[0]:
                    yield from self._frames(
                        wanted, seek=False
                    )  # entered too late: key frames are found by other clocks
                    return
                if frame.pts is None or frame.pts < wanted[place]:
                    continue
                _check_pixels(frame.width, frame.height)
                image = frame.to_image()
                yield image.rotate(frame.rotation, expand=True) if frame.rotation else image
                place += 1
                if place == len(wanted):
                    return


def _stamps(file: "InputContainer") -> Iterator[int]:
    """Presentation stamps of the video's frames, in the file's order."""
    for count, packet in enumerate(file.demux(file.streams.video[0])):
        if packet.is_corrupt:
            raise InputError("video is broken: its data ends early")
        if count > MAX_SOURCE_FRAMES:
            raise InputError(f"video has more than {MAX_SOURCE_FRAMES} frames")
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None and packet.size and not packet.is_discard:
            yield stamp


class Animation:
    """An animated GIF or WebP."""

    def __init__(self, data: bytes) -> None:
        self.image = Image.open(io.BytesIO(data), formats=("GIF", "WEBP"))
        self.width, self.height = self.image.size
        _check_pixels(self.width, self.height)
        count = getattr(self.image, "n_frames", 1)
        if count > MAX_ANIMATION_FRAMES:
            raise InputError(f"animation has {count} frames; the limit is {MAX_ANIMATION_FRAMES}")
        self.times, self.duration = [], 0.0
        for index in range(count):
            self.image.seek(index)
            self.image.load()
            self.times.append(self.duration)
            self.duration += self.image.info.get("duration", 0) / 1000 or _STILL_SECONDS

    def keyframes(self) -> list[float]:
        """Seconds of the frames that need no other frame: a later frame may be laid over the ones before it."""
        return [0.0]

    def decode(self, indices: list[int]) -> Iterator[Image.Image]:
        for index in indices:
            self.image.seek(index)
            frame = self.image.convert("RGBA")
            yield Image.alpha_composite(Image.new("RGBA", frame.size, "white"), frame).convert("RGB")


def _check_pixels(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_IMAGE_PIXELS:
        raise InputError(f"video frames are {width} x {height} pixels; the limit is {MAX_IMAGE_PIXELS} pixels in all")
