"""Media made small for a page. The same bytes give the same thumbnail. Imports no torch."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

from model.data.errors import InputError
from model.data.schema import Media
from model.data.video import FrameSampling, read_medium

_FRAMES = 3
_LOSSLESS_SIDE = 64  # drawings this small gain nothing from JPEG, and lose their edges
_JPEG_QUALITY = 70


@dataclass(frozen=True)
class Thumbnail:
    """A small picture, or why there is none.

    Attributes:
        uri: ``data:`` address with the picture's bytes; empty where it cannot be shown.
        width, height: of the picture in pixels.
        problem: why it cannot be shown; empty where it can.
    """

    uri: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


def thumbnail(medium: Media, side: int) -> Thumbnail:
    """An image of at most ``side`` x ``side`` pixels; of a video three frames beside each other, each that small.

    Nothing is fetched: a medium that lies at a uri has no thumbnail.
    """
    if medium["bytes"] is None:
        return Thumbnail(problem=f"{medium['kind']} at {medium['uri']}")
    try:
        read = read_medium({**medium, "fps": None}, FrameSampling(frames=_FRAMES))
    except InputError as error:
        return Thumbnail(problem=str(error))
    frames = [read] if isinstance(read, Image.Image) else read.frames
    for frame in frames:
        frame.thumbnail((side, side))
    strip = frames[0] if len(frames) == 1 else _beside(frames)
    lossless = max(strip.size) <= _LOSSLESS_SIDE
    stream = io.BytesIO()
    strip.save(stream, "PNG", optimize=True) if lossless else strip.save(stream, "JPEG", quality=_JPEG_QUALITY)
    data = base64.b64encode(stream.getvalue()).decode()
    return Thumbnail(f"data:image/{'png' if lossless else 'jpeg'};base64,{data}", *strip.size)


def _beside(frames: list[Image.Image]) -> Image.Image:
    width, height = frames[0].size
    strip = Image.new("RGB", (width * len(frames), height))
    for place, frame in enumerate(frames):
        strip.paste(frame, (place * width, 0))
    return strip
