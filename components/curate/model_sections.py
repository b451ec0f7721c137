"""Sections of the operators that run a model (language, safety, embeddings, OCR, image-text) or look at videos.

Imports neither a model nor a decoder. Thresholds marked "our choice" were set on photographs of scikit-image and
rendered text; look at the funnel's examples before you trust them on other data.
"""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from model.config import Section

UnsafeClass = Literal[
    "FEMALE_GENITALIA_COVERED",
    "FACE_FEMALE",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED",
    "ANUS_EXPOSED",
    "FEET_EXPOSED",
    "BELLY_COVERED",
    "FEET_COVERED",
    "ARMPITS_COVERED",
    "ARMPITS_EXPOSED",
    "FACE_MALE",
    "BELLY_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_COVERED",
    "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
]
"""What NudeNet's detector tells apart, in the order of its outputs."""


class Languages(Section):
    """Refuse a row whose text is not in one of the languages; short texts pass, for they cannot be told."""

    category: ClassVar[str] = "language"
    op: Literal["languages"] = "languages"
    allowed: tuple[str, ...] = Field(("en",), min_length=1)
    """ISO 639-1 codes; ``zxx`` is text in no language (formulas, codes)."""
    min_probability: float = Field(0.5, ge=0, le=1)
    """A text whose likeliest language is less likely than this is refused, whatever it is."""
    min_letters: int = Field(20, ge=1)
    """A row with fewer letters, in all of its messages together, passes (our choice)."""


class Unsafe(Section):
    """Refuse a row that shows what a detector of nudity takes for one of the classes."""

    category: ClassVar[str] = "unsafe"
    op: Literal["unsafe"] = "unsafe"
    classes: tuple[UnsafeClass, ...] = Field(
        (
            "FEMALE_GENITALIA_EXPOSED",
            "MALE_GENITALIA_EXPOSED",
            "FEMALE_BREAST_EXPOSED",
            "ANUS_EXPOSED",
            "BUTTOCKS_EXPOSED",
        ),
        min_length=1,
    )
    """Classes of the detector that are refused."""
    min_score: float = Field(0.5, gt=0, le=1)
    """Score from which on a detection counts (our choice: a photographed coffee cup reaches 0.35)."""
    video_frames: int = Field(8, ge=1, le=256)
    """Evenly spread frames of every video that are looked at."""


class SemanticDuplicates(Section):
    """Refuse a row that says in other words what an earlier row says: same task, media and numbers, near embeddings.

    SemDeDup (arXiv 2303.09540) with clusters of bounded size.
    """

    category: ClassVar[str] = "semantic_duplicate"
    op: Literal["semantic_duplicates"] = "semantic_duplicates"
    min_cosine: float = Field(0.97, gt=0, le=1)
    """Cosine of two texts' embeddings from which on they say the same (our choice, on benchmarks/dedup_quality.py)."""
    max_tokens: int = Field(256, ge=8, le=512)
    """Longer texts are not compared: the model was trained on 256 word pieces and would see the beginning alone."""
    block: int = Field(2048, ge=2)
    """Most texts that are compared all with all; larger groups are clustered first, and compared within clusters."""


class OcrAgreement(Section):
    """Refuse a row of rendered text in whose images OCR does not find its answer."""

    category: ClassVar[str] = "ocr"
    op: Literal["ocr_agreement"] = "ocr_agreement"
    tasks: tuple[str, ...] = Field(min_length=1)
    """Rows of these tasks are read; all others pass."""
    answer_is: Literal["page", "part"] = "part"
    """``page``: the answer is all that the images say; ``part``: it stands somewhere in a line or across lines."""
    min_similarity: float = Field(0.8, gt=0, le=1)
    """Least ANLS of what was read and the best accepted answer (our choice: at 0.5 short words match by chance).
    Spaces and case are not compared: the OCR drops spaces."""


class ClipScore(Section):
    """Refuse a row whose images a CLIP or SigLIP model finds far from its caption (CLIPScore, arXiv 2104.08718)."""

    category: ClassVar[str] = "clip_score"
    op: Literal["clip_score"] = "clip_score"
    model: Path
    """Local directory of a CLIP or SigLIP model in the format of transformers, with its processor."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Rows of these tasks, whose answer describes their images; all others pass."""
    min_cosine: float = Field(0.2, ge=-1, le=1)
    """Least cosine of image and caption, as the mean over the images; its scale depends on the model."""


class VideoMetadata(Section):
    """Refuse videos that cannot be opened or are out of bounds; fill in size and format of the others."""

    category: ClassVar[str] = "video"
    op: Literal["video_metadata"] = "video_metadata"
    max_bytes: int = Field(500_000_000, gt=0)
    """A larger file is refused."""
    min_seconds: float = Field(0.5, ge=0)
    """Least length of the clip (from ``start`` to ``end``, else of the file)."""
    max_seconds: float = Field(3600.0, gt=0)
    """Largest length of the clip."""
    min_fps: float = Field(1.0, ge=0)
    """Least frames a second in the clip: fewer is a slide show."""
    min_side: int = Field(28, ge=1)
    """Least pixels of the shorter side."""


class VideoKeyframes(Section):
    """Refuse videos that have to be decoded over long stretches before a frame can be shown."""

    category: ClassVar[str] = "keyframes"
    op: Literal["video_keyframes"] = "video_keyframes"
    max_seconds_between: float = Field(30.0, gt=0)
    """Largest distance of two key frames of the file, or of the last one and its end."""


class VideoMotion(Section):
    """Refuse clips that stand still or are cut all the time, told from perceptual hashes of sampled frames."""

    category: ClassVar[str] = "motion"
    op: Literal["video_motion"] = "video_motion"
    fps: float = Field(2.0, gt=0)
    """Frames a second that are looked at."""
    max_frames: int = Field(512, ge=2)
    """Most frames that are looked at; longer clips are sampled less densely."""
    still_bits: int = Field(1, ge=0, le=64)
    """Two frames in a row whose hashes differ in at most so many bits show no motion (our choice)."""
    max_still: float = Field(0.9, ge=0, le=1)
    """Largest share of steps without motion; 1 lets stills pass."""
    cut_bits: int = Field(20, ge=1, le=64)
    """A cut changes at least so many bits of the hash (our choice); two photographs differ in 32 on average."""
    cut_change: float = Field(0.08, ge=0, le=1)
    """A cut changes the grey of the picture by at least this, of 1, on average (our choice)."""
    cut_peak: float = Field(2.0, ge=1)
    """A cut changes the grey so many times as much as is usual in the steps around it (our choice)."""
    max_cuts_per_minute: float = Field(60.0, ge=0)
    """Largest number of scene cuts a minute."""


class VideoWords(Section):
    """Refuse clips whose timed words lie outside of them, are out of order, or leave long silences.

    Defaults: StreamingVLM (arXiv 2510.09608), annealing data: silence of at most 3 s, at least two words a second.
    """

    category: ClassVar[str] = "words"
    op: Literal["video_words"] = "video_words"
    clock: Literal["source", "clip"] = "source"
    """What the words' seconds count from: the beginning of the video file, or the ``start`` of the clip."""
    tolerance: float = Field(0.25, ge=0)
    """Seconds that a word may overlap the one before it, or stand out of the clip: recognisers round."""
    max_silence: float = Field(3.0, gt=0)
    """Longest time without a word, in seconds: before the first, between two, and after the last."""
    min_words_per_second: float = Field(2.0, ge=0)
    """Least words per second of the clip."""
