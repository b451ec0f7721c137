"""Videos for InternVL: a line ``Frame1: <image>`` for every frame, each frame one tile.

Source: InternVL3.5's model card and its Hugging Face port; part of the released training code writes ``Frame-1: ``.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from model.data.errors import InputError
from model.data.schema import IMAGE_PLACEHOLDER, PLACEHOLDERS, VIDEO_PLACEHOLDER, Row
from model.flash.images import Tiling, image_size, of_row, row_images

if TYPE_CHECKING:
    from model.data.video import Video

MIN_FRAMES, MAX_FRAMES = 8, 32
"""Frames of a video: as many as its row's ``fps`` asks for within these; evenly 32 (or all) where it asks for none."""


class Shown(NamedTuple):
    """What one ``<image>`` shows: an image (or its size), and the tiling that cuts it."""

    what: Image.Image | tuple[int, int]
    tiling: Tiling


def decode_media(row: Row) -> "list[Image.Image | Video]":
    """The images of a row, and the sampled frames of its videos.

    Raises:
        InputError: names the row whose medium cannot be read, or is not in the row.
    """
    if all(medium["kind"] == "image" for medium in row["media"]):
        return list(row_images(row))
    from model.data.video import FrameSampling, row_media

    return row_media(row, FrameSampling(min_frames=MIN_FRAMES, max_frames=MAX_FRAMES))


def media_sizes(row: Row) -> list[tuple[int, int] | list[tuple[int, int]]]:
    """Width and height of the images of a row, and of each frame of its videos; no image is decoded.

    Raises:
        InputError: as ``decode_media``, as far as the headers tell.
    """
    sizes: list[tuple[int, int] | list[tuple[int, int]]] = []
    for number, medium in enumerate(row["media"]):
        if medium["kind"] == "video":
            from model.data.video import FrameSampling, row_video_shape

            sampling = FrameSampling(min_frames=MIN_FRAMES, max_frames=MAX_FRAMES)
            shape = row_video_shape(row, number, sampling)
            sizes.append([(shape.width, shape.height)] * shape.frames)
        else:
            sizes.append(of_row(row, number, image_size))
    return sizes


def expand_videos(
    messages: Sequence[dict[str, str]], media: "Sequence[Image.Image | Video | tuple | list]", tiling: Tiling
) -> tuple[list[dict[str, str]], list[Shown]]:
    """Messages whose ``<video>`` placeholders are lines of frames, and what each ``<image>`` of them shows, in order.

    Images share the tiles of a sample; a frame is one tile, as in training (InternVL3.5, released code).

    Args:
        messages: hold one placeholder for every medium; the n-th ``<video>`` shows the n-th video.
        media: images and videos, or their sizes: a video's is a list.
        tiling: of a sample with one image.

    Raises:
        InputError: placeholders and media differ in number.
    """
    stills, videos = [], []
    for medium in media:
        frames = medium if isinstance(medium, list) else getattr(medium, "frames", None)
        if frames is None:
            stills.append(medium)
        else:
            videos.append(frames)
    given = {"image": stills, "video": videos}
    for kind, placeholder in PLACEHOLDERS.items():
        shown = sum(message["content"].count(placeholder) for message in messages)
        if shown != len(given[kind]):
            raise InputError(f"{shown} {placeholder} placeholders for {len(given[kind])} {kind}s")
    shared, single = tiling.shared_by(len(stills)), Tiling(tiling.tile, 1, 1)
    pictures: list[Shown] = []
    next_still, next_video = iter(stills), iter(videos)
    expanded = []
    for message in messages:
        text = []
        for piece in _pieces(message["content"]):
            if piece == VIDEO_PLACEHOLDER:
                frames = next(next_video)
                pictures += [Shown(frame, single) for frame in frames]
                piece = "\n".join(f"Frame{number}: {IMAGE_PLACEHOLDER}" for number in range(1, len(frames) + 1))
            elif piece == IMAGE_PLACEHOLDER:
                pictures.append(Shown(next(next_still), shared))
            text.append(piece)
        expanded.append({**message, "content": "".join(text)})
    return expanded, pictures


def _pieces(text: str) -> Iterator[str]:
    """Placeholders, and the text between them."""
    for number, part in enumerate(text.split(VIDEO_PLACEHOLDER)):
        if number:
            yield VIDEO_PLACEHOLDER
        for place, piece in enumerate(part.split(IMAGE_PLACEHOLDER)):
            if place:
                yield IMAGE_PLACEHOLDER
            yield piece
