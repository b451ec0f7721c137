"""What curation knows about a clip: its metadata, its motion and scene cuts, the timing of its words.

Frames are decoded one after the other and only their 64-bit hashes are kept, so a long clip takes no more memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from components.curate.images import perceptual_hash
from components.curate.model_sections import VideoKeyframes, VideoMetadata, VideoMotion, VideoWords
from model.data.errors import InputError
from model.data.video import MAX_VIDEO_BYTES, FrameSampling
from model.data.video_files import Animation, Container, open_video

_REDUCED = 32  # pixels a side of the grey frames that are compared
_AROUND = 4  # steps before and after one that tell what is usual there


class ClipFacts(NamedTuple):
    """Metadata of a clip: container format, size in pixels, seconds, frames, and frames per second."""

    format: str
    width: int
    height: int
    seconds: float
    frames: int
    fps: float


class Motion(NamedTuple):
    """What the hashes of sampled frames tell: mean bits per step, share of steps without motion, cuts [s]."""

    bits: float
    still: float
    cuts: tuple[float, ...]


class Sampled(NamedTuple):
    """Evenly spread frames of a clip of ``seconds``: their seconds from its start, their perceptual hashes, and the
    mean change of grey (of 1) of each but the first against the one before.
    """

    seconds: float
    times: tuple[float, ...]
    hashes: tuple[int, ...]
    changes: tuple[float, ...]


class Clip(NamedTuple):
    """An open video and the part of it that a row shows: numbers of its frames, and its bounds in seconds."""

    source: Container | Animation
    frames: tuple[int, ...]
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return self.end - self.start


@contextmanager
def open_clip(medium: Mapping[str, Any]) -> Iterator[Clip]:
    """The clip of a medium.

    Raises:
        InputError: the video is not in the row, cannot be opened, or has no frame between the clip's bounds.
    """
    data = medium["bytes"]
    if data is None:
        raise InputError("the video lies at a uri; curation needs its bytes in the row")
    if not data:
        raise InputError("video is empty (0 bytes)")
    if len(data) > MAX_VIDEO_BYTES:
        raise InputError(f"video has {len(data)} bytes; the limit is {MAX_VIDEO_BYTES}")
    with open_video(data) as source:
        start = medium["start"] or 0.0
        end = source.duration if medium["end"] is None else min(medium["end"], source.duration)
        frames = tuple(index for index, time in enumerate(source.times) if start <= time < end)
        if not frames:
            raise InputError(f"video has no frames between {start} s and {end:.3f} s")
        yield Clip(source, frames, start, end)


def clip_facts(medium: Mapping[str, Any], section: VideoMetadata) -> ClipFacts:
    """Metadata of a clip within the bounds.

    Raises:
        InputError: it is not within them, or cannot be opened.
    """
    if len(medium["bytes"] or b"") > section.max_bytes:
        raise InputError(f"video has {len(medium['bytes'])} bytes; the limit is {section.max_bytes}")
    with open_clip(medium) as clip:
        source = clip.source
        name = source.format if isinstance(source, Container) else source.image.format or "animation"
        fps = len(clip.frames) / clip.seconds
        facts = ClipFacts(name, source.width, source.height, round(clip.seconds, 6), len(clip.frames), round(fps, 4))
    if not section.min_seconds <= facts.seconds <= section.max_seconds:
        raise InputError(f"lasts {facts.seconds:.2f} s, not {section.min_seconds} to {section.max_seconds} s")
    if facts.fps < section.min_fps:
        raise InputError(f"has {facts.fps:.2f} frames a second; the least is {section.min_fps}")
    if min(facts.width, facts.height) < section.min_side:
        raise InputError(f"{facts.width} x {facts.height} pixels; the least is {section.min_side} a side")
    return facts


def keyframe_times(medium: Mapping[str, Any], section: VideoKeyframes) -> tuple[float, ...]:
    """Seconds in the file of its key frames.

    Raises:
        InputError: two are too far apart, or the video cannot be opened.
    """
    with open_clip(medium) as clip:
        times, end = clip.source.keyframes(), clip.source.duration
    gaps = [(after - before, before) for before, after in zip([0.0, *times], [*times, end], strict=True)]
    longest, place = max(gaps, key=lambda gap: round(gap[0], 6))  # the first of equals, whatever the last bits
    if longest > section.max_seconds_between:
        raise InputError(
            f"no key frame for {longest:.2f} s after {place:.2f} s; the limit is {section.max_seconds_between} s"
        )
    return tuple(round(time, 6) for time in times)


def sample_clip(medium: Mapping[str, Any], fps: float, max_frames: int) -> Sampled:
    """Decode evenly spread frames of a clip, one at a time, and keep what ``Sampled`` says of them.

    Raises:
        InputError: the video cannot be opened, or a frame cannot be decoded.
    """
    with open_clip(medium) as clip:
        sampling = FrameSampling(fps=fps, min_frames=2, max_frames=max_frames)
        count = len(clip.frames)
        chosen = [clip.frames[index] for index in sampling.indices(count, count / clip.seconds)]
        hashes, changes, before = [], [], None
        for frame in clip.source.decode(chosen):
            hashes.append(perceptual_hash(frame))
            grey = np.asarray(frame.convert("L").resize((_REDUCED, _REDUCED), Image.Resampling.BOX), np.int16)
            if before is not None:
                changes.append(float(np.abs(grey - before).mean()) / 255)
            before = grey
        times = tuple(clip.source.times[index] - clip.start for index in chosen)
        sampled = Sampled(clip.seconds, times, tuple(hashes), tuple(changes))
    if len(hashes) != len(chosen):
        raise InputError(f"video is broken: {len(hashes)} of {len(chosen)} frames can be decoded")
    return sampled


def motion(sampled: Sampled, section: VideoMotion) -> Motion:
    """Motion of a clip; one frame alone stands still.

    A cut lies at the first frame of a new scene: hash and grey change much there, and the grey more than around it. In
    a fast pan they change much at every step.
    """
    steps = [(a ^ b).bit_count() for a, b in pairwise(sampled.hashes)]
    if not steps:
        return Motion(0.0, 1.0, ())
    still = sum(bits <= section.still_bits for bits in steps) / len(steps)
    cuts = []
    for place, (bits, change) in enumerate(zip(steps, sampled.changes, strict=True)):
        around = [*sampled.changes[max(0, place - _AROUND) : place], *sampled.changes[place + 1 : place + 1 + _AROUND]]
        usual = median(around) if around else 0.0
        if bits >= section.cut_bits and change >= max(section.cut_change, section.cut_peak * usual):
            cuts.append(round(sampled.times[place + 1], 6))
    return Motion(round(sum(steps) / len(steps), 4), round(still, 4), tuple(cuts))


def motion_reason(found: Motion, seconds: float, section: VideoMotion) -> str | None:
    """Why a clip of this motion is refused; None when it is not."""
    if found.still > section.max_still:
        return f"static: {found.still:.0%} of the steps show no motion; the limit is {section.max_still:.0%}"
    if len(found.cuts) * 60 > section.max_cuts_per_minute * seconds:
        return f"{len(found.cuts)} scene cuts in {seconds:.1f} s; the limit is {section.max_cuts_per_minute} a minute"
    return None


def clip_bounds(medium: Mapping[str, Any]) -> tuple[float, float]:
    """Start and end of a clip in seconds of its file; the file is opened only where the row does not say.

    Raises:
        InputError: it cannot be opened.
    """
    if medium["bytes"] is None and medium["end"] is not None:
        return medium["start"] or 0.0, medium["end"]
    with open_clip(medium) as clip:
        return clip.start, clip.end


def words_reason(words: Sequence[Mapping[str, Any]], start: float, end: float, section: VideoWords) -> str | None:
    """Why the timed words of the clip from ``start`` to ``end`` [s] are refused; None when they are not."""
    offset = start if section.clock == "source" else 0.0
    spans = [(word["start"] - offset, word["end"] - offset) for word in words]
    length, slack = end - start, section.tolerance
    said, silent, since = 0.0, 0.0, 0.0
    for number, (begin, finish) in enumerate(spans):
        if not begin <= finish:
            return f"words[{number}] ends before it starts"
        if begin < -slack or finish > length + slack:
            return f"words[{number}] at {begin:.2f} to {finish:.2f} s lies outside of the clip of {length:.2f} s"
        if begin < said - slack:
            return f"words[{number}] starts at {begin:.2f} s, before words[{number - 1}] has ended"
        if begin - said > silent:
            silent, since = begin - said, said
        said = max(said, finish)
    if length - said > silent:
        silent, since = length - said, said
    if silent > section.max_silence:
        return f"silent for {silent:.2f} s after {since:.2f} s; the limit is {section.max_silence} s"
    if len(words) < section.min_words_per_second * length:
        return f"{len(words) / length:.2f} words a second; the least is {section.min_words_per_second}"
    return None
