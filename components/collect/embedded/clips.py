"""Short videos of handwritten digits: where one moves, which follow each other, how often one flashes."""

import hashlib
import io
from itertools import pairwise

import numpy as np
from PIL import Image

from components.collect.canvas import Painter
from components.collect.embedded.config import CanvasConfig, ClipsConfig, EmbeddedConfig
from components.collect.embedded.sample import Maker, Sample, between, pick
from components.collect.glyphs import LICENSE, SOURCE, Glyphs, load_glyphs, split_glyphs
from model.data.schema import Media, scorer

# Change of x and y.
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_QUESTIONS = {
    "clip_direction": "Where does the digit move: left, right, up or down?",
    "clip_order": "Which digits are shown, in order?",
    "clip_count": "How often does the digit appear?",
}
_PAPER, _INK = (20, 80), (190, 245)
_NOISE = 6  # grey levels; it also keeps encoders from joining equal frames
_FORMATS = {"gif": "GIF", "webp": "WEBP", "mp4": "MP4"}

Frames = list[np.ndarray]


def make_clips(config: ClipsConfig, corpus: EmbeddedConfig, *, heldout: bool) -> Maker:
    """Tasks ``clip_direction``, ``clip_order``, ``clip_count``; held-out rows show held-out glyphs."""
    glyphs = split_glyphs(load_glyphs(), corpus.heldout_share, corpus.seed)[heldout]
    size = config.canvas * 2 // 5
    painter = Painter(CanvasConfig(canvas=config.canvas, cells=1, digits=(1, 1), scale=(1.0, 1.0)), glyphs)

    def make(task: str, rng: np.random.Generator) -> Sample:
        if task == "clip_direction":
            answer = pick(rng, list(DIRECTIONS))
            patch = painter.patch(int(rng.integers(len(glyphs))), size)
            masks = _moving(patch, DIRECTIONS[answer], config, rng)
        else:
            events = between(rng, config.events)
            chosen = (
                _different_neighbours(glyphs, events, rng) if task == "clip_order" else [_any(glyphs, rng)] * events
            )
            patches = [painter.patch(index, size) for index in chosen]
            masks = _in_turn(patches, config, rng, pause=task == "clip_count")
            digits = " ".join(str(glyphs.labels[index]) for index in chosen)
            answer = digits if task == "clip_order" else str(events)
        judge = scorer("numeric") if task == "clip_count" else scorer("exact")
        clip = _encode(_shade(masks, rng), config)
        return Sample(_QUESTIONS[task], answer, judge, SOURCE, LICENSE, (clip,))

    return make


def _any(glyphs: Glyphs, rng: np.random.Generator) -> int:
    return int(rng.integers(len(glyphs)))


def _different_neighbours(glyphs: Glyphs, count: int, rng: np.random.Generator) -> list[int]:
    """Glyphs of which no two in a row show the same digit: each change is seen."""
    chosen: list[int] = []
    while len(chosen) < count:
        index = _any(glyphs, rng)
        if not chosen or glyphs.labels[index] != glyphs.labels[chosen[-1]]:
            chosen.append(index)
    return chosen


def _moving(patch: np.ndarray, step: tuple[int, int], config: ClipsConfig, rng: np.random.Generator) -> Frames:
    """The patch from one side of the frame to the other, at a random place across its way."""
    room = np.array([config.canvas - patch.shape[1], config.canvas - patch.shape[0]])
    across = rng.integers(room + 1)
    frames = []
    for share in np.linspace(0, 1, config.frames):
        along = share if sum(step) > 0 else 1 - share
        place = np.where(np.abs(step), along * room, across).round().astype(int)
        frames.append(_placed(patch, place, config.canvas))
    return frames


def _in_turn(patches: Frames, config: ClipsConfig, rng: np.random.Generator, *, pause: bool) -> Frames:
    """Every patch for some frames, at one place each; with ``pause``, an empty frame or more after each."""
    slots = len(patches) * (2 if pause else 1)
    # Where the slots end: at least one frame each, the rest shared at random.
    ends = [0, *sorted((rng.choice(config.frames - 1, size=slots - 1, replace=False) + 1).tolist()), config.frames]
    frames = []
    for number, (start, end) in enumerate(pairwise(ends)):
        patch = patches[number // 2 if pause else number]
        room = np.array([config.canvas - patch.shape[1], config.canvas - patch.shape[0]])
        place = rng.integers(room + 1)
        shown = not (pause and number % 2)
        empty = np.zeros((config.canvas, config.canvas), np.float32)
        frames += [_placed(patch, place, config.canvas) if shown else empty] * (end - start)
    return frames


def _placed(patch: np.ndarray, place: np.ndarray, side: int) -> np.ndarray:
    """Ink in [0, 1]: float32 [side, side], the patch's left top corner at ``place`` (x, y)."""
    frame = np.zeros((side, side), np.float32)
    frame[place[1] : place[1] + patch.shape[0], place[0] : place[0] + patch.shape[1]] = patch
    return frame


def _shade(masks: Frames, rng: np.random.Generator) -> Frames:
    """Grey frames, uint8: one paper and ink for the clip, new noise in each frame."""
    paper, ink = between(rng, _PAPER), between(rng, _INK)
    noise = rng.integers(-_NOISE, _NOISE + 1, size=(len(masks), *masks[0].shape), dtype=np.int8)
    return [
        (paper + mask * (ink - paper) + grain).clip(0, 255).astype(np.uint8)
        for mask, grain in zip(masks, noise, strict=True)
    ]


def _encode(frames: Frames, config: ClipsConfig) -> Media:
    """The clip as a medium, sampled at its own rate."""
    data = _h264(frames, config.fps) if config.container == "mp4" else _animation(frames, config)
    return {
        "kind": "video",
        "bytes": data,
        "uri": None,
        "start": 0.0,
        "end": len(frames) / config.fps,
        "fps": float(config.fps),
        "format": _FORMATS[config.container],
        "width": config.canvas,
        "height": config.canvas,
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": None,
    }


def _animation(frames: Frames, config: ClipsConfig) -> bytes:
    buffer = io.BytesIO()
    first, *others = (Image.fromarray(frame) for frame in frames)
    settings = {"lossless": True, "method": 0} if config.container == "webp" else {"optimize": False}
    first.save(
        buffer, _FORMATS[config.container], save_all=True, append_images=others, duration=1000 // config.fps, **settings
    )
    return buffer.getvalue()


def _h264(frames: Frames, fps: int) -> bytes:
    """H.264 in MP4: the same frames give the same bytes.

    At a constant quantiser x264 needs no look-ahead, whose vector code reads what memory happened to hold: with rate
    control, one clip in twenty differed from its last encoding.
    """
    import av  # only this container needs the video library

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as file:
        stream = file.add_stream("libx264", rate=fps, options={"qp": "18", "preset": "ultrafast", "threads": "1"})
        stream.height, stream.width = frames[0].shape
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        file.mux(stream.encode())
    return buffer.getvalue()
