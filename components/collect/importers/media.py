"""Media of a record, loaded: the content decides what a file is, whatever its name says."""

import io
from typing import Any, cast

from PIL import Image

from components.collect.importers.config import Source
from components.collect.importers.record import MediaSource, Refusal
from components.collect.importers.root import SourceRoot
from model.data.errors import InputError
from model.data.schema import MEDIA_TYPE, Media, image_media
from model.data.video_files import Container, open_video
from model.flash.images import image_size, read_image

_FIELDS = tuple(field.name for field in MEDIA_TYPE)


def load_media(
    sources: list[MediaSource], text_bytes: int, root: SourceRoot, config: Source, *, decode: bool = False
) -> list[Media]:
    """The media of one row; ``text_bytes`` of ``max_row_bytes`` are taken already.

    Images are known by their headers; ``decode`` looks at every pixel. (``curate`` does so with the training rows, but
    cannot leave out a held-out one.)

    Raises:
        Refusal: a medium is missing, outside, too large, broken, or not of its kind.
    """
    left = config.max_row_bytes - text_bytes
    if left < 0:
        raise Refusal(f"the row has {text_bytes} bytes of text (max_row_bytes {config.max_row_bytes})")
    media: list[Media] = []
    for number, source in enumerate(sources):
        try:
            medium = _load(source, left, root, config)
            if decode and medium["kind"] == "image" and medium["bytes"] is not None:
                read_image(medium["bytes"])
        except (Refusal, InputError) as error:
            root.check_there()
            raise Refusal(f"media[{number}]: {error}") from None
        left -= len(medium["bytes"] or b"")
        media.append(medium)
    return media


def _load(source: MediaSource, left: int, root: SourceRoot, config: Source) -> Media:
    if source.data is None and source.path is None:
        return cast("Media", _empty(source.kind) | source.kept)  # an export's reference to what lies elsewhere
    if source.kind == "video" and config.videos == "uri" and source.data is None:
        uri, sha256 = root.sha256(source.path or "", source.base)
        return _clip(cast("Media", _empty("video") | {"uri": uri, "sha256": sha256}), source)
    data = source.data
    if data is None:
        data = root.read(source.path or "", source.base, left)
    elif len(data) > left:
        raise Refusal(f"{len(data)} bytes; {left} are left of max_row_bytes")
    medium = _image(data) if source.kind == "image" else _clip(_video(data), source)
    known = {name: value for name, value in source.kept.items() if value is not None}
    if known.get("sha256", medium["sha256"]) != medium["sha256"]:
        raise Refusal("its sha256 is not that of its bytes")
    return cast("Media", medium | known)


def _image(data: bytes) -> Media:
    image_size(data)
    with Image.open(io.BytesIO(data)) as image:
        return image_media(data, image_format=image.format or "", width=image.width, height=image.height)


def _video(data: bytes) -> Media:
    """A video that has frames, by its header and its first one."""
    if not data:
        raise Refusal("video is empty (0 bytes)")
    with open_video(data) as video:
        kind = video.format if isinstance(video, Container) else (video.image.format or "")
        found = image_media(data, image_format=kind.upper(), width=video.width, height=video.height)
    return cast("Media", found | {"kind": "video"})


def _clip(medium: Media, source: MediaSource) -> Media:
    return cast("Media", medium | {"start": source.start, "end": source.end, "fps": source.fps})


def _empty(kind: str) -> dict[str, Any]:
    return dict.fromkeys(_FIELDS) | {"kind": kind}
