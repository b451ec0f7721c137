"""From a section of the recipe to the functions of its operator: one ``case`` each, and the only place."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from daft import Expression

from components.curate import (
    clip_score,
    distinct,
    image_operators,
    integrity,
    language,
    model_sections,
    near_texts,
    ocr,
    pii,
    recipe,
    selection,
    semantic,
    text_operators,
    unsafe,
    video_operators,
)
from components.curate.rows import Rows, Verdicts


class Implementation(NamedTuple):
    """The functions of an operator (components/curate/recipe.py says what they do); at least one is there."""

    row: Callable[[Any], Expression] | None = None
    joint: Callable[[Any, Rows], Verdicts] | None = None

    @property
    def module(self) -> Path:
        """The file of the operator, whose import closure is the version of its code."""
        function = self.row or self.joint
        return Path(sys.modules[function.__module__].__file__ or "")


def implementation(section: recipe.Operator) -> Implementation:
    """The functions of the operator that ``section`` describes; imports their module where it is a heavy one."""
    match section:
        case recipe.Schema():
            return Implementation(integrity.schema)
        case recipe.Decode():
            return Implementation(integrity.decode)
        case recipe.Size():
            return Implementation(image_operators.size)
        case recipe.Aspect():
            return Implementation(image_operators.aspect)
        case recipe.Entropy():
            return Implementation(image_operators.entropy)
        case recipe.Blur():
            return Implementation(image_operators.blur)
        case recipe.TextImageRatio():
            return Implementation(text_operators.text_image_ratio)
        case recipe.Licences():
            return Implementation(text_operators.licences)
        case recipe.RedactPii():
            return Implementation(pii.redact_pii)
        case recipe.ExactDuplicates():
            return Implementation(distinct.text_keys, distinct.exact_duplicates)
        case recipe.NearDuplicates():
            return Implementation(distinct.text_keys, distinct.near_duplicates)
        case recipe.NearDuplicateTexts():
            return Implementation(near_texts.text_sketches, near_texts.near_duplicate_texts)
        case recipe.Decontaminate():
            return Implementation(distinct.plain_texts, distinct.decontaminate)
        case recipe.Statistics():
            return Implementation(text_operators.statistics)
        case recipe.Difficulty():
            return Implementation(joint=selection.difficulty)
        case recipe.Mixture():
            return Implementation(joint=selection.mixture)
        case model_sections.Languages():
            return Implementation(language.languages)
        case model_sections.Unsafe():
            return Implementation(unsafe.unsafe)
        case model_sections.SemanticDuplicates():
            return Implementation(semantic.embeddings, semantic.semantic_duplicates)
        case model_sections.OcrAgreement():
            return Implementation(ocr.ocr_agreement)
        case model_sections.ClipScore():
            return Implementation(clip_score.clip_score)
        case model_sections.VideoMetadata():
            return Implementation(video_operators.video_metadata)
        case model_sections.VideoKeyframes():
            return Implementation(video_operators.video_keyframes)
        case model_sections.VideoMotion():
            return Implementation(video_operators.video_motion)
        case model_sections.VideoWords():
            return Implementation(video_operators.video_words)
    raise TypeError(f"operator {section.op} has no implementation")
