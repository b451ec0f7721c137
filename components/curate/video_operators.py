"""``video_metadata``, ``video_keyframes``, ``video_motion`` and ``video_words``: the operators over ``clips.py``.

Rows without videos (for ``video_words``: without timed words) pass. With videos, ``decode`` has ``videos: true``.
"""

from collections.abc import Callable
from typing import Any

import daft
from daft import DataType, Expression, Series, col

from components.curate.clips import (
    clip_bounds,
    clip_facts,
    keyframe_times,
    motion,
    motion_reason,
    sample_clip,
    words_reason,
)
from components.curate.model_sections import VideoKeyframes, VideoMetadata, VideoMotion, VideoWords
from model.data.errors import InputError

Medium = dict[str, Any]
_TEXTS, _WHOLE = DataType.list(DataType.string()), DataType.list(DataType.int64())
_NUMBERS, _TIMES = DataType.list(DataType.float64()), DataType.list(DataType.list(DataType.float64()))
_METADATA = {
    "format": _TEXTS,
    "width": _WHOLE,
    "height": _WHOLE,
    "video_seconds": _NUMBERS,
    "video_frames": _WHOLE,
    "video_fps": _NUMBERS,
}
_MOTION = {"motion_bits": _NUMBERS, "motion_still": _NUMBERS, "scene_cuts": _TIMES}


def _struct(fields: dict[str, DataType]) -> DataType:
    return DataType.struct({"reason": DataType.string()} | fields)


def video_metadata(section: VideoMetadata) -> Expression:
    """Facts ``format, width, height`` with those of videos filled in, ``video_seconds, video_frames, video_fps``.

    All are lists over the media; the last three are null for an image.
    """
    return _metadata(*(col(name) for name in ("media", "format", "width", "height", "reason")), section)


def video_keyframes(section: VideoKeyframes) -> Expression:
    """Fact ``keyframes``: seconds in the file of the key frames of each medium, null for an image."""
    return _keyframes(col("media"), col("reason"), section)


def video_motion(section: VideoMotion) -> Expression:
    """Facts ``motion_bits``, ``motion_still`` and ``scene_cuts`` of each medium, null for an image."""
    return _motion(col("media"), col("reason"), section)


def video_words(section: VideoWords) -> Expression:
    """Why the timed words of a row do not fit its video. No facts."""
    return _words(col("media"), col("words"), col("reason"), section)


def _of_videos(
    media: list[Medium], fields: dict[str, Any], look: Callable[[Medium], tuple[Any, ...]]
) -> dict[str, Any]:
    """A struct whose fields are lists over the media: ``look`` of a video, nulls for an image."""
    values = []
    for number, medium in enumerate(media):
        try:
            values.append(look(medium) if medium["kind"] == "video" else (None,) * len(fields))
        except InputError as error:
            return {"reason": f"media[{number}]: {error}"} | dict.fromkeys(fields)
    return {"reason": None} | {name: [value[place] for value in values] for place, name in enumerate(fields)}


@daft.func.batch(return_dtype=_struct(_METADATA), use_process=False)
def _metadata(
    media: Series, form: Series, width: Series, height: Series, reason: Series, section: VideoMetadata
) -> list[dict[str, Any]]:
    def look(medium: Medium) -> tuple[Any, ...]:
        facts = clip_facts(medium, section)
        return (facts.format, facts.width, facts.height, facts.seconds, facts.frames, facts.fps)

    found = []
    columns = (media.to_pylist(), form.to_pylist(), width.to_pylist(), height.to_pylist(), reason.to_pylist())
    for row, *known, earlier in zip(*columns, strict=True):
        if earlier is not None:
            found.append(dict.fromkeys(("reason", *_METADATA)))
            continue
        struct = _of_videos(row, _METADATA, look)
        for name, before in zip(("format", "width", "height"), known, strict=True):
            if struct["reason"] is None and before is not None:
                struct[name] = [new if old is None else old for new, old in zip(struct[name], before, strict=True)]
        found.append(struct)
    return found


@daft.func.batch(return_dtype=_struct({"keyframes": _TIMES}), use_process=False)
def _keyframes(media: Series, reason: Series, section: VideoKeyframes) -> list[dict[str, Any]]:
    return [
        dict.fromkeys(("reason", "keyframes"))
        if earlier is not None
        else _of_videos(row, {"keyframes": _TIMES}, lambda medium: (list(keyframe_times(medium, section)),))
        for row, earlier in zip(media.to_pylist(), reason.to_pylist(), strict=True)
    ]


@daft.func.batch(return_dtype=_struct(_MOTION), use_process=False)
def _motion(media: Series, reason: Series, section: VideoMotion) -> list[dict[str, Any]]:
    def look(medium: Medium) -> tuple[Any, ...]:
        sampled = sample_clip(medium, section.fps, section.max_frames)
        found = motion(sampled, section)
        if why := motion_reason(found, sampled.seconds, section):
            raise InputError(why)
        return (found.bits, found.still, list(found.cuts))

    return [
        dict.fromkeys(("reason", *_MOTION)) if earlier is not None else _of_videos(row, _MOTION, look)
        for row, earlier in zip(media.to_pylist(), reason.to_pylist(), strict=True)
    ]


@daft.func.batch(return_dtype=_struct({}), use_process=False)
def _words(media: Series, words: Series, reason: Series, section: VideoWords) -> list[dict[str, Any]]:
    columns = (media.to_pylist(), words.to_pylist(), reason.to_pylist())
    return [
        {"reason": None if earlier is not None or spoken is None else _misfit(row, spoken, section)}
        for row, spoken, earlier in zip(*columns, strict=True)
    ]


def _misfit(media: list[Medium], words: list[dict[str, Any]], section: VideoWords) -> str | None:
    videos = [medium for medium in media if medium["kind"] == "video"]
    if len(videos) != 1:
        return f"timed words belong to one video; the row has {len(videos)}"
    try:
        return words_reason(words, *clip_bounds(videos[0]), section)
    except InputError as error:
        return str(error)
