"""Builders of small sources in other people's formats, and what an import makes of them."""

import csv
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from components.collect.importers.config import AnySource
from components.collect.importers.rows import Importer, open_importer
from model.data.errors import InputError
from model.data.schema import Reject, Row, check_row


@dataclass
class Imported:
    """Everything that came of a source."""

    train: list[Row]
    heldout: list[Row]
    rejects: list[Reject]
    importer: Importer

    @property
    def rows(self) -> list[Row]:
        """All rows, by id."""
        return sorted([*self.train, *self.heldout], key=lambda row: row["id"])

    @property
    def reasons(self) -> dict[str, str]:
        """Why each reject is one."""
        return {reject["id"]: reject["reason"] for reject in self.rejects}


def import_all(path: Path, **settings) -> Imported:
    """Both passes over a source."""
    config = TypeAdapter(AnySource).validate_python({"path": path, **settings})
    importer = open_importer(config)
    rejects: list[Reject] = []
    heldout = list(importer.heldout(rejects))
    return Imported(list(importer.train(rejects)), heldout, rejects, importer)


def refused(path: Path, **settings) -> str:
    """The one line that a whole source gets."""
    with pytest.raises(InputError) as caught:
        import_all(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def the_row(imported: Imported, row_id: str) -> Row:
    """The row of this id; it is sound."""
    (row,) = (row for row in imported.rows if row["id"] == row_id)
    assert check_row(row) is None
    return row


def png(shade: int = 0, side: int = 6) -> bytes:
    """An image that ``shade`` (up to 2**24) tells from others."""
    colour = (shade & 255, shade >> 8 & 255, shade >> 16 & 255)
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def video(frames: int = 6, rate: int = 2) -> bytes:
    """An MP4 of ``frames`` grey frames."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = 32
        for index in range(frames):
            pixels = np.full((32, 32, 3), index * 20 % 256, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        file.mux(stream.encode())
    return buffer.getvalue()


def write_images(directory: Path, count: int, ending: str = "png") -> list[str]:
    """Different images ``0.png``, ``1.png``, ...; returns their names."""
    directory.mkdir(parents=True, exist_ok=True)
    names = [f"{index}.{ending}" for index in range(count)]
    for index, name in enumerate(names):
        (directory / name).write_bytes(png(index))
    return names


def write_jsonl(path: Path, lines: list) -> Path:
    """One JSON value (or, as it is, one run of bytes) a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return path


def write_csv(path: Path, rows: list[list]) -> Path:
    """A CSV of these rows, the header first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return path


def csv_of(directory: Path, *rows: list) -> Path:
    """``q.csv`` of these rows of image, question and answer."""
    return write_csv(directory / "q.csv", [["image", "question", "answer"], *rows])


def questions_csv(directory: Path, count: int) -> Path:
    """A folder of ``count`` images and a CSV of a question about each."""
    names = write_images(directory, count)
    rows = [[name, "How many?", str(index)] for index, name in enumerate(names)]
    write_csv(directory / "questions.csv", [["image", "question", "answer"], *rows])
    return directory


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar file of regular members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def says(*turns: str) -> list[dict]:
    """A conversation in ShareGPT's words, the human first."""
    return [{"from": ("human", "gpt")[index % 2], "value": turn} for index, turn in enumerate(turns)]


def exchange(row: Row) -> list[tuple[str, str]]:
    """(role, text) of a row's messages."""
    return [(message["role"], message["content"]) for message in row["messages"]]
