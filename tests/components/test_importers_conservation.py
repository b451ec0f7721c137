"""Rows in = rows out + rejects, whatever is in a source; and the same source gives the same rows."""

import csv
import io
import json
import tarfile
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.schema import check_row
from tests.source_builders import import_all, png, says, write_tar

TEXT = st.text(max_size=12) | st.sampled_from(["<image>", "<image>\nWhat?", "<|im_end|>", " ", "Grün", "<video>"])
PATHS = st.sampled_from(["0.png", "1.png", "lie.jpg", "lost.png", "../0.png", "text.png", "/etc/passwd", "", None, 3])
JUNK = st.none() | st.integers() | st.floats(allow_nan=True) | TEXT | st.lists(TEXT, max_size=2)
TURN = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "system", "function"]), "value": TEXT | JUNK})
CONVERSATION = (
    st.lists(TEXT, min_size=2, max_size=4).map(lambda texts: says(*texts)) | st.lists(TURN, max_size=3) | JUNK
)
LINE = st.fixed_dictionaries(
    {"conversations": CONVERSATION},
    optional={
        "id": JUNK,
        "image": PATHS | st.lists(PATHS, max_size=2),
        "split": st.sampled_from(["train", "test", "x"]),
    },
)
PAIR = st.fixed_dictionaries({"question": TEXT, "chosen": TEXT}, optional={"rejected": TEXT | JUNK, "image": PATHS})
CUT = st.none() | st.floats(0.05, 0.95)
"""Where a record's bytes are cut off; None leaves them whole."""


def damaged(data: bytes, cut: float | None, spoil: bool) -> bytes:
    """A line's bytes, cut or with a byte that is no UTF-8."""
    data = data if cut is None else data[: int(len(data) * cut)]
    return (data[:5] + b"\xff" + data[5:] if spoil else data).replace(b"\n", b"")


def write_source_images(directory: Path) -> None:
    for name, data in {"0.png": png(0), "1.png": png(1), "lie.jpg": png(2), "text.png": b"no image"}.items():
        (directory / name).write_bytes(data)


def check_conserved(directory: Path, records: int, **config) -> None:
    """Both passes, twice: every record is accounted for, every row is sound, ids are unique, and nothing varies."""
    imported = import_all(directory, **config)
    counts = imported.importer.counts
    assert counts["records"] == records
    assert len(imported.rows) + len(imported.rejects) == records + counts["repeated"]
    assert all(check_row(row) is None for row in imported.rows)
    assert all(reject["reason"] and "\n" not in reject["id"] for reject in imported.rejects)
    ids = [row["id"] for row in imported.rows]
    assert len(set(ids)) == len(ids)
    again = import_all(directory, **config)
    assert (again.train, again.heldout, again.rejects) == (imported.train, imported.heldout, imported.rejects)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LINE | PAIR | JUNK, CUT, st.booleans()), max_size=12), st.sampled_from([1, 2, 0.5, 1.5]))
def test_every_line_of_a_jsonl_is_a_row_or_a_reject(lines, repeat):
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_source_images(directory)
        encoded = [damaged(json.dumps(value).encode(), cut, spoil) for value, cut, spoil in lines]
        (directory / "a.jsonl").write_bytes(b"\n".join(encoded))
        sound = [{"split": split, "conversations": says("?", split)} for split in ("train", "test")]
        (directory / "sound.jsonl").write_text("\n".join(map(json.dumps, sound)))
        sets = {"a": {"annotation": "a.jsonl", "repeat_time": repeat}, "sound": {"annotation": "sound.jsonl"}}
        (directory / "meta.json").write_text(json.dumps(sets))
        records = 2 + sum(bool(line.strip()) for line in encoded)
        check_conserved(directory, records, format="internvl", heldout_share=0.3)


SOUND = [["0.png", "How many?", "3"], ["1.png", "How many?", "4"]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(PATHS.map(str) | TEXT, min_size=1, max_size=4), max_size=10), st.booleans())
def test_every_record_of_a_csv_is_a_row_or_a_reject(rows, spoil):
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_source_images(directory)
        buffer = io.StringIO(newline="")
        csv.writer(buffer).writerows([["image", "question", "answer"], *SOUND, *rows])
        data = buffer.getvalue().encode("utf-8", "surrogatepass")
        head, _, body = data.partition(b"\r\n")
        (directory / "q.csv").write_bytes(head + b"\r\n" + (body.replace(b"W", b"\xff") if spoil else body))
        check_conserved(directory, len(SOUND) + len(rows), format="csv", heldout_share=0.001)


MEMBER = st.tuples(
    st.integers(0, 5),
    st.sampled_from(["png", "0.png", "txt", "json", "mp4", "xyz"]),
    st.sampled_from(
        [b"A cat.", b"\xff\xfe", b"", b'{"question": "a", "answer": "b"}', b'{"conversations": 1}', png(9)]
    ),
    st.sampled_from(["", "../", "/", "folder/"]),
    st.sampled_from([tarfile.REGTYPE] * 5 + [tarfile.SYMTYPE, tarfile.FIFOTYPE]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(MEMBER, max_size=14))
def test_every_group_of_a_tar_is_a_row_or_a_reject(members):
    groups, last = 0, None
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        seen: set[str] = set()
        with tarfile.open(directory / "a.tar", "w") as tar:
            for key, kind, data, folder, member_type in members:
                member = tarfile.TarInfo(f"{folder}{key}.{kind}")
                member.type = member_type
                member.size = len(data) if member_type == tarfile.REGTYPE else 0
                tar.addfile(member, io.BytesIO(data) if member.size else None)
                if (folder, key) != last or kind in seen:
                    groups, last, seen = groups + 1, (folder, key), set()
                seen.add(kind)
        sound = [(f"{key}.{kind}", data) for key in "ab" for kind, data in (("txt", b"A"), ("png", png(ord(key))))]
        write_tar(directory / "b.tar", sound)
        check_conserved(directory, groups + 2, format="webdataset", heldout_share=0.001)


IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CELLS = st.fixed_dictionaries(
    {
        "image": st.none()
        | st.fixed_dictionaries(
            {"bytes": st.none() | st.sampled_from([png(7), b"no image", b""]), "path": PATHS.map(str)}
        ),
        "question": st.none() | TEXT,
        "answers": st.none() | st.lists(st.none() | TEXT, max_size=2),
    }
)


@settings(max_examples=30, deadline=None)
@given(st.lists(CELLS, max_size=8), st.integers(1, 3))
def test_every_row_of_a_parquet_is_a_row_or_a_reject(cells, group):
    sound = [{"image": None, "question": f"{number}?", "answers": ["yes"]} for number in range(2)]
    types = [("image", IMAGE_TYPE), ("question", pa.string()), ("answers", pa.list_(pa.string()))]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_source_images(directory)
        table = pa.Table.from_pylist([*sound, *cells], schema=pa.schema(types))
        pq.write_table(table, directory / "t.parquet", row_group_size=group)
        check_conserved(directory, len(cells) + 2, format="parquet", heldout_share=0.001)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.fixed_dictionaries({"messages": CONVERSATION}, optional={"images": PATHS, "id": JUNK}) | JUNK))
def test_every_item_of_a_json_list_is_a_row_or_a_reject(items):
    sound = [{"conversations": says(f"{number}?", "yes")} for number in range(2)]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_source_images(directory)
        (directory / "a.json").write_text(json.dumps([*sound, *items]))
        check_conserved(directory, len(items) + 2, format="sharegpt", heldout_share=0.001)


STEMS = st.dictionaries(
    st.sampled_from(["a/1", "a/2", "a/2-b", "b/1", "c"]),
    st.dictionaries(
        st.sampled_from([".png", ".jpg", ".txt", ".mp4"]), st.sampled_from([png(8), b"A cat.", b"\xff", b""])
    ),
)


@settings(max_examples=30, deadline=None)
@given(STEMS)
def test_every_name_of_a_folder_is_a_row_or_a_reject(stems):
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        sound = {f"s/{number}": {".png": png(number), ".txt": b"A"} for number in (1, 2)}
        for stem, files in (sound | stems).items():
            for ending, data in files.items():
                path = directory / f"{stem}{ending}"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
        records = 2 + sum(bool(files) for files in stems.values())
        check_conserved(directory, records, format="captions", heldout_share=0.001)
