"""``ocr_agreement``: rendered text that OCR reads as the row's answer. The reading itself is in ``page_reading.py``."""

from typing import Any

import daft
from daft import DataType, Expression, Series, col

from components.curate.model_sections import OcrAgreement
from components.curate.page_reading import read_lines, reader_files
from model.data.errors import InputError
from model.flash.images import read_image
from scoring.text import anls, normalise

_FOUND = DataType.struct(
    {"reason": DataType.string(), "ocr_text": DataType.string(), "ocr_similarity": DataType.float64()}
)
_SHOWN = 60


def ocr_agreement(section: OcrAgreement) -> Expression:
    """Why a row is refused. Facts ``ocr_text`` (lines read) and ``ocr_similarity``, null for other tasks.

    Raises:
        InputError: the models are not installed.
    """
    reader_files()  # here, where the error ends the step; an error about a row only rejects that row
    return _judge(col("media"), col("task"), col("answers"), col("reason"), section)


def similarity(lines: list[str], answers: list[str], section: OcrAgreement) -> float:
    """ANLS of the best accepted answer and the lines read, or the part of them that is most like it; in [0, 1].

    Letters are compared without case and spaces.
    """
    read = _squeezed("".join(lines))
    wanted = [_squeezed(answer) for answer in answers]
    if section.answer_is == "page":
        return anls(read, wanted, threshold=0.0)
    return max(_best_part(read, answer) for answer in wanted)


def _squeezed(text: str) -> str:
    return "".join(normalise(text).split())


def _best_part(read: str, answer: str) -> float:
    """Highest ANLS of ``answer`` and any stretch of ``read`` of any length.

    1 - d / length of the answer, where d is the least edit distance to a stretch (Sellers 1980): the first row of the
    table is free, and so is what follows the best column. A stretch longer than the answer only adds insertions.
    """
    if not answer:
        return 1.0
    distances = list(range(len(answer) + 1))
    best = distances[-1]
    for letter in read:
        diagonal, distances[0] = distances[0], 0
        for index, expected in enumerate(answer, 1):
            above = distances[index]
            distances[index] = min(above + 1, distances[index - 1] + 1, diagonal + (letter != expected))
            diagonal = above
        best = min(best, distances[-1])
    return 1 - best / len(answer)


def judge(
    media: list[dict[str, Any]], answers: list[str], section: OcrAgreement
) -> tuple[str | None, str | None, float | None]:
    """(Why a row is refused or None, the text read or None, its similarity or None). Rows without images pass."""
    images = [medium for medium in media if medium["kind"] == "image"]
    if not images:
        return None, None, None
    try:
        lines = [line for medium in images for line in read_lines(read_image(medium["bytes"] or b""))]
    except InputError as error:
        return str(error), None, None
    found = round(similarity(lines, answers, section), 4)
    text = "\n".join(lines)
    if found >= section.min_similarity:
        return None, text, found
    shown = repr(" ".join(lines)[:_SHOWN]) if lines else "nothing"
    return f"read {shown}: similarity {found:.2f} to the answer; the least is {section.min_similarity}", text, found


@daft.func.batch(return_dtype=_FOUND, use_process=False)
def _judge(media: Series, task: Series, answers: Series, reason: Series, section: OcrAgreement) -> list[dict[str, Any]]:
    found = []
    columns = (media.to_pylist(), task.to_pylist(), answers.to_pylist(), reason.to_pylist())
    for row, name, accepted, earlier in zip(*columns, strict=True):
        look = earlier is None and name in section.tasks
        why, text, value = judge(row, accepted, section) if look else (None, None, None)
        found.append({"reason": why, "ocr_text": text, "ocr_similarity": value})
    return found
