"""``schema`` and ``decode``: sound rows whose images can be decoded, and the facts about them."""

import hashlib
from collections.abc import Mapping
from typing import Any

import daft
from daft import DataType, Expression, Series, col

from components.curate.images import inspect_image
from components.curate.recipe import Decode, Schema
from model.data.errors import InputError
from model.data.schema import ROW_SCHEMA, check_row

FACTS = ("sha256", "phash", "format", "width", "height")
"""Lists over the media of a row; all but the first are null for a video."""
_TEXTS = DataType.list(DataType.string())
_NUMBERS = DataType.list(DataType.int64())
_DECODED = DataType.struct(
    {
        "reason": DataType.string(),
        "sha256": _TEXTS,
        "phash": _TEXTS,
        "format": _TEXTS,
        "width": _NUMBERS,
        "height": _NUMBERS,
    }
)


def schema(section: Schema) -> Expression:
    """Why a row is not a valid row (model.data.schema)."""
    return _check_schema(*(col(name) for name in ROW_SCHEMA.names))


def decode(section: Decode) -> Expression:
    """Why an image of a row is no good; else the facts about every medium."""
    return _inspect(col("media"), col("reason"), section)


@daft.func.batch(return_dtype=DataType.struct({"reason": DataType.string()}), use_process=False)
def _check_schema(*columns: Series) -> list[dict[str, str | None]]:
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    return [{"reason": check_row(dict(zip(ROW_SCHEMA.names, row, strict=True)))} for row in rows]


@daft.func.batch(return_dtype=_DECODED, use_process=False)
def _inspect(media: Series, reason: Series, section: Decode) -> list[dict[str, Any]]:
    return [
        _facts(row, section) if earlier is None else dict.fromkeys(("reason", *FACTS))
        for row, earlier in zip(media.to_pylist(), reason.to_pylist(), strict=True)
    ]


def _facts(media: list[dict[str, Any]], section: Decode) -> dict[str, Any]:
    found = []
    for index, medium in enumerate(media):
        try:
            video = section.videos and medium["kind"] == "video"
            found.append((_video_sha256(medium), None, None, None, None) if video else inspect_image(medium, section))
        except InputError as error:
            return dict.fromkeys(FACTS) | {"reason": f"media[{index}]: {error}"}
    return {"reason": None} | {name: [fact[place] for fact in found] for place, name in enumerate(FACTS)}


def _video_sha256(medium: Mapping[str, Any]) -> str:
    """Hash of a video: of its bytes where they are in the row, else the stated one (the schema asks for it)."""
    if medium["bytes"] is None:
        return medium["sha256"]
    sha256 = hashlib.sha256(medium["bytes"]).hexdigest()
    if medium["sha256"] not in (None, sha256):
        raise InputError("its sha256 is not that of its bytes")
    return sha256
