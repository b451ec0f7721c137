"""Small real datasets: pictures with questions, one row of text, and rejects."""

import io
from pathlib import Path

from PIL import Image

from model.data.schema import Row, image_media, scorer
from model.data.shards import Dataset, write_dataset


def picture(number: int, side: int = 24) -> bytes:
    """A PNG whose pixels depend on ``number``."""
    image = Image.new("RGB", (side, side), (number * 37 % 256, number * 91 % 256, 128))
    image.putpixel((number % side, 0), (255, 255, 255))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def picture_row(number: int, task: str = "name", text: str = "Which number?") -> Row:
    """A row with one picture, whose answer is its number."""
    return {
        "id": f"row-{number:04d}",
        "source": "painted",
        "license": "CC0-1.0",
        "media": [image_media(picture(number), image_format="PNG", width=24, height=24)],
        "messages": [
            {"role": "user", "content": f"<image>\n{text}"},
            {"role": "assistant", "content": str(number)},
        ],
        "task": task,
        "answers": [str(number)],
        "scorer": scorer("numeric"),
    }


def text_row(name: str = "sum") -> Row:
    """A row without media."""
    return {
        "id": name,
        "source": "written",
        "license": "MIT",
        "media": [],
        "messages": [{"role": "user", "content": "3 + 4 = ?"}, {"role": "assistant", "content": "7"}],
        "task": "arithmetic",
        "answers": ["7"],
        "scorer": scorer("exact"),
    }


def painted_dataset(directory: Path, rows: int = 20, shards: int = 2) -> Dataset:
    """``rows`` pictures of two tasks, one row of text, two rejects."""
    made = [picture_row(number, "name" if number % 4 else "rare") for number in range(rows)]
    rejects = [
        {"id": "gone-1", "step": "curate", "reason": "image: cannot be <decoded>"},
        {"id": "gone-2", "step": "curate", "reason": "duplicate: of row-0001"},
    ]
    return write_dataset(directory, [*made, text_row()], shards=shards, rejects=rejects)
