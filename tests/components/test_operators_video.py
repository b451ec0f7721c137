"""The video operators: metadata, key frames, motion and scene cuts of real encoded clips, and the times of words."""

import io

import av
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from components.curate import model_sections
from components.curate.clips import (
    clip_facts,
    keyframe_times,
    motion,
    motion_reason,
    sample_clip,
    words_reason,
)
from components.curate.config import CurateConfig
from components.curate.engine import apply_recipe
from components.curate.model_sections import VideoKeyframes, VideoMetadata, VideoMotion, VideoWords
from components.curate.recipe import Decode, Schema
from components.settings import REPOSITORY
from model.data.errors import InputError
from model.data.schema import scorer
from model.data.shards import open_dataset, write_dataset

SIZE = (128, 96)
FPS = 8
CAT, CUP, ROCKET = (data.chelsea(), data.coffee(), data.rocket())


def still(pixels, count):
    return [Image.fromarray(pixels).resize(SIZE)] * count


def pan(pixels, count):
    """A window that moves over a photograph."""
    photo = Image.fromarray(pixels).resize((SIZE[0] * 2, SIZE[1]))
    return [photo.crop((step, 0, step + SIZE[0], SIZE[1])) for step in np.linspace(0, SIZE[0], count).astype(int)]


def video(frames, container="mp4", codec="libx264", gop=12):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.gop_size = gop
        if codec == "libx264":
            stream.options = {"x264-params": "scenecut=0"}
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
        file.mux(stream.encode())
    return buffer.getvalue()


def medium(payload, **clip):
    fields = ("uri", "start", "end", "fps", "format", "width", "height", "sha256", "phash")
    return dict.fromkeys(fields) | {"kind": "video", "bytes": payload} | clip


def words(spans):
    return [{"start": float(start), "end": float(end), "text": "word"} for start, end in spans]


@pytest.fixture(scope="module")
def panning():
    return video(pan(CUP, 4 * FPS))


# Metadata


@pytest.mark.parametrize(("container", "codec", "name"), [("mp4", "libx264", "mp4"), ("matroska", "mpeg4", "matroska")])
def test_metadata_are_what_was_encoded(container, codec, name):
    facts = clip_facts(medium(video(pan(CAT, 20), container, codec)), VideoMetadata())
    assert (facts.format, facts.width, facts.height, facts.frames) == (name, *SIZE, 20)
    assert facts.seconds == pytest.approx(20 / FPS, abs=0.02)
    assert facts.fps == pytest.approx(FPS, rel=0.01)


def test_metadata_are_those_of_the_clip(panning):
    facts = clip_facts(medium(panning, start=1.0, end=2.5), VideoMetadata())
    assert (facts.seconds, facts.frames) == (1.5, 12)


def test_an_animation_is_a_video_too():
    buffer = io.BytesIO()
    first, *others = pan(CAT, 10)
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=100)
    facts = clip_facts(medium(buffer.getvalue()), VideoMetadata())
    assert (facts.format, facts.seconds, facts.frames) == ("GIF", pytest.approx(1.0), 10)


@pytest.mark.parametrize(
    ("bounds", "clip", "why"),
    [
        ({"min_seconds": 5}, {}, "lasts 4.00 s, not 5.0 to"),
        ({"max_seconds": 3}, {}, "lasts 4.00 s"),
        ({"max_seconds": 3, "min_fps": 9}, {"end": 2.0}, "has 8.00 frames a second; the least is 9"),
        ({"min_side": 97}, {}, "128 x 96 pixels; the least is 97 a side"),
        ({"max_bytes": 100}, {}, "the limit is 100"),
        ({}, {"start": 9.0, "end": 10.0}, "no frames between 9.0 s"),
        ({}, {"bytes": None}, "the video lies at a uri"),
        ({}, {"bytes": b""}, "empty"),
        ({}, {"bytes": b"not a video at all"}, "not a video of a known format"),
    ],
)
def test_a_video_out_of_bounds_is_refused(panning, bounds, clip, why):
    with pytest.raises(InputError, match=why):
        clip_facts(medium(panning) | clip, VideoMetadata(**bounds))


def test_key_frames_are_where_the_encoder_put_them(panning):
    assert keyframe_times(medium(panning), VideoKeyframes()) == (0.0, 1.5, 3.0)
    with pytest.raises(InputError, match=r"no key frame for 1\.50 s after 0\.00 s; the limit is 1\.0 s"):
        keyframe_times(medium(panning), VideoKeyframes(max_seconds_between=1))


# Motion


def seen(frames):
    section = VideoMotion(fps=FPS)
    sampled = sample_clip(medium(video(frames)), section.fps, section.max_frames)
    found = motion(sampled, section)
    return found, motion_reason(found, sampled.seconds, section)


def test_a_photograph_that_stands_still_is_static_and_a_pan_is_not():
    found, reason = seen(still(CAT, 24))
    assert reason.startswith("static: ")
    assert found.still > 0.9
    found, reason = seen(pan(CAT, 24))
    assert (reason, found.cuts) == (None, ())
    assert found.bits > 1


def test_scene_cuts_are_found_where_they_are():
    frames = [*pan(CAT, 16), *pan(CUP, 16), *pan(ROCKET, 16)]
    found, reason = seen(frames)
    assert found.cuts == (2.0, 4.0)
    assert reason is None
    assert motion_reason(found, 6.0, VideoMotion(max_cuts_per_minute=10)).startswith("2 scene cuts in 6.0 s")


def test_long_clips_are_sampled_less_densely(panning):
    sampled = sample_clip(medium(panning), fps=100, max_frames=7)
    assert len(sampled.times) == 7
    assert sampled.times[-1] == pytest.approx(4 - 1 / FPS, abs=0.01)


# Words


SECTION = VideoWords(max_silence=1.0, min_words_per_second=1.0, tolerance=0.1)


@pytest.mark.parametrize(
    ("spans", "why"),
    [
        ([(10.2, 10.8), (11, 11.9), (12.5, 13), (13.2, 14.05)], None),
        ([(9.5, 10.2), (11, 12), (12.5, 14)], r"words\[0\] at -0.50 to 0.20 s lies outside of the clip of 4.00 s"),
        ([(10.2, 10.8), (11, 12), (12, 14.5)], r"words\[2\] at 2.00 to 4.50 s lies outside"),
        ([(10.2, 10.8), (12, 11)], r"words\[1\] ends before it starts"),
        ([(10.2, 11.8), (11, 12), (12.5, 14)], r"words\[1\] starts at 1.00 s, before words\[0\] has ended"),
        ([(11.5, 12), (12, 12.5), (12.5, 13), (13, 14)], r"silent for 1.50 s after 0.00 s; the limit is 1.0 s"),
        ([(10, 11), (11, 11.5), (12.75, 13), (13, 14)], r"silent for 1.25 s after 1.50 s"),
        ([(10, 11), (11, 11.5), (11.5, 12), (12, 12.5)], r"silent for 1.50 s after 2.50 s"),
        ([(10, 12), (12, 14)], r"0.50 words a second; the least is 1.0"),
        ([], r"silent for 4.00 s"),
    ],
)
def test_words_fit_their_clip_or_say_why_not(spans, why):
    import re

    reason = words_reason(words(spans), 10.0, 14.0, SECTION)
    assert reason is None if why is None else re.match(why, reason)


@given(st.lists(st.tuples(st.floats(0, 4), st.floats(0, 4)), min_size=1, max_size=8), st.floats(0, 100))
def test_the_clock_of_the_clip_and_of_the_source_agree(spans, start):
    ordered = sorted((min(span), max(span)) for span in spans)
    of_clip = SECTION.model_copy(
        update={"clock": "clip", "tolerance": 10.0, "max_silence": 1.5, "min_words_per_second": 0.4}
    )
    of_source = of_clip.model_copy(update={"clock": "source"})
    moved = [(begin + start, end + start) for begin, end in ordered]
    silence = max(
        b - a
        for a, b in zip(
            [0.0, *np.maximum.accumulate([end for _, end in ordered])],
            [*(begin for begin, _ in ordered), 4.0],
            strict=True,
        )
    )
    if abs(silence - 1.5) < 1e-6:
        return  # either answer is right to the last bit
    expected = silence <= 1.5 and len(spans) >= 2
    assert (words_reason(words(ordered), start, start + 4, of_clip) is None) == expected
    assert (words_reason(words(moved), start, start + 4, of_source) is None) == expected


# In a recipe


def row(row_id, media, spoken=None):
    turns = [
        {"role": "user", "content": "<video>\n" * len(media) + "What happens?"},
        {"role": "assistant", "content": "It moves."},
    ]
    base = {"id": row_id, "source": "test", "license": "CC0-1.0", "media": media, "messages": turns, "task": "video"}
    return base | {"answers": ["It moves."], "scorer": scorer("exact"), "words": spoken}


def test_a_recipe_of_video_operators_gives_every_row_its_facts_or_its_reason(tmp_path, panning):
    every_second = words((start / 2, start / 2 + 0.4) for start in range(8))
    rows = [
        row("good", [medium(panning)], every_second),
        row("broken", [medium(panning[:200])]),
        row("static", [medium(video(still(CAT, 32)))]),
        row("silent", [medium(panning)], every_second[:1]),
        row("short", [medium(panning, start=0.0, end=0.25)]),
        row("text", []),
    ]
    recipe = (Schema(), Decode(videos=True), VideoMetadata(), VideoKeyframes(), VideoMotion(), VideoWords())
    write_dataset(tmp_path / "rows", rows, shards=2)
    outcome = apply_recipe(open_dataset(tmp_path / "rows"), recipe, tmp_path / "state", workers=2)
    found = dict(zip(outcome.rows.fact("id"), outcome.rows.reasons, strict=True))
    assert found["good"] is None
    assert found["text"] is None
    assert {name: reason.split(":")[0] for name, reason in found.items() if reason} == {
        "broken": "video",
        "static": "motion",
        "silent": "words",
        "short": "video",
    }
    place = outcome.rows.fact("id").index("good")
    facts = {
        name: outcome.rows.fact(name)[place] for name in ("format", "width", "height", "video_frames", "keyframes")
    }
    assert facts == {
        "format": ["mp4"],
        "width": [128],
        "height": [96],
        "video_frames": [32],
        "keyframes": [[0, 1.5, 3]],
    }
    assert outcome.rows.fact("scene_cuts")[place] == [[]]


def test_the_recipe_of_the_guide_is_a_recipe_and_names_every_operator_of_this_kind():
    guide = (REPOSITORY / "docs" / "curation.md").read_text(encoding="utf-8")
    config = CurateConfig(**yaml.safe_load(guide.split("```yaml")[1].split("```")[0])["curate"])
    named = {type(section) for section in config.recipe[2:]}
    assert named == {value for value in vars(model_sections).values() if hasattr(value, "category")}
