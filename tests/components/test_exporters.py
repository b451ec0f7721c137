"""Exporters: what goes out comes back through the importer, and other tools can read it."""

import json
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.collect.exporters.internvl import export_internvl
from components.collect.exporters.webdataset import export_webdataset
from components.collect.importers.media import load_media
from components.collect.importers.record import MediaSource
from components.collect.importers.root import SourceRoot
from model.data.artifact import payload_sha256
from model.data.errors import InputError
from model.data.schema import check_row, scorer
from tests.source_builders import import_all, png, video

VIDEO = video(4)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda text: text.strip() and "<" not in text
)
NAMES = st.from_regex(r"[A-Za-z0-9 ._/-]{1,12}", fullmatch=True).filter(str.strip)
SECONDS = st.floats(0, 50)


def medium(kind, data, **clip):
    """A medium as an importer makes it."""
    with tempfile.TemporaryDirectory() as directory:
        config = import_config(Path(directory))
        (made,) = load_media([MediaSource(kind, data=data, **clip)], 0, SourceRoot(Path(directory)), config)
    return made


def import_config(directory):
    from components.collect.importers.config import InternvlSource

    return InternvlSource(path=directory)


IMAGES = [medium("image", png(index)) for index in range(3)]
PLAIN, CLIP = medium("video", VIDEO), medium("video", VIDEO, start=0.5, end=1.5, fps=2.0)
ELSEWHERE = PLAIN | {"bytes": None, "uri": "videos/long.mp4"}


@st.composite
def rows(draw, media=None):
    """A valid row: any of its columns, any kind of conversation."""
    choices = st.lists(st.sampled_from(IMAGES), max_size=2) | st.sampled_from([[PLAIN], [CLIP]])
    shown = draw(choices if media is None else media)
    exchanges = draw(st.lists(st.tuples(WORDS, WORDS | st.sampled_from(["+", "-"])), min_size=1, max_size=2))
    messages = [{"role": "system", "content": draw(WORDS)}] if draw(st.booleans()) else []
    for asked, answered in exchanges:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    first = next(message for message in messages if message["role"] == "user")
    first["content"] = "".join(f"<{one['kind']}>\n" for one in shown) + first["content"]
    row = {
        "id": draw(NAMES),
        "source": draw(WORDS),
        "license": draw(WORDS),
        "media": shown,
        "messages": messages,
        "task": draw(WORDS),
        "answers": draw(st.lists(WORDS, min_size=1, max_size=2)),
        "scorer": draw(st.sampled_from([scorer("exact"), scorer("anls", threshold=0.4)])),
        "chosen": None,
        "rejected": None,
        "steps": draw(st.none() | st.lists(st.fixed_dictionaries({"text": WORDS, "label": st.none() | SECONDS}))),
        "words": draw(
            st.none() | st.lists(st.fixed_dictionaries({"start": SECONDS, "end": SECONDS, "text": WORDS}), max_size=2)
        ),
    }
    if draw(st.booleans()):
        row |= {"chosen": messages[-1]["content"], "rejected": draw(WORDS)}
    assert check_row(row) is None
    return row


def round_trip(export, found, format_name):
    """Rows after export and import, by id; and the export's own count of rejects."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "export"
        done = export(iter(found), directory)
        assert done.rows + done.rejects == len(found)
        if not done.rows:
            return {}, done
        # Everything may be held out: rows come back from both sides.
        imported = import_all(directory, format=format_name, heldout_share=0.5)
        assert imported.rejects == []
        return {row["id"]: row for row in imported.rows}, done


MIXED = st.sampled_from([[IMAGES[0], CLIP], [ELSEWHERE]])
UNIQUE = st.lists(rows(), min_size=4, max_size=6, unique_by=lambda row: row["id"])


def spread(found):
    """The rows, and eight more that differ in their texts, so that an import has both sides."""

    def fixed(number):
        said = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "!"}]
        empty = dict.fromkeys(("chosen", "rejected", "steps", "words"))
        return found[0] | empty | {"id": f"fixed {number}", "media": [], "messages": said}

    return [*found, *map(fixed, range(8))]


@settings(max_examples=40, deadline=None)
@given(UNIQUE)
def test_what_internvl_can_hold_comes_back_as_it_was(found):
    found = spread(found)
    back, done = round_trip(export_internvl, found, "internvl")
    held = [row for row in found if row["chosen"] is None or sum(m["role"] == "user" for m in row["messages"]) == 1]
    assert done.rows == len(held) == len(back)
    for row in held:
        assert back[row["id"]] == row


@settings(max_examples=40, deadline=None)
@given(st.lists(rows() | rows(media=MIXED), min_size=1, max_size=5, unique_by=lambda row: row["id"]))
def test_webdataset_holds_every_row(found):
    found = spread(found)
    back, done = round_trip(export_webdataset, found, "webdataset")
    assert done.rejects == 0
    assert back == {row["id"]: row for row in found}


ROW = {
    "id": "a",
    "source": "s",
    "license": "CC0-1.0",
    "media": [IMAGES[0]],
    "messages": [{"role": "user", "content": "<image>\nHow many?"}, {"role": "assistant", "content": "3"}],
    "task": "count",
    "answers": ["3"],
    "scorer": scorer("numeric"),
}
"""A row without its optional columns."""


def test_internvls_own_reader_finds_what_it_looks_for(tmp_path):
    pair = ROW | {"id": "b", "chosen": "3", "rejected": "4", "answers": ["three"]}
    two = ROW | {"id": "c", "media": IMAGES[:2]}
    two["messages"] = [{"role": "user", "content": "<image><image>Same?"}, {"role": "assistant", "content": "No."}]
    clip = ROW | {"id": "d", "media": [CLIP]}
    clip["messages"] = [{"role": "user", "content": "<video>\nWhat?"}, {"role": "assistant", "content": "Grey."}]
    export_internvl([ROW, pair, two, clip], tmp_path / "out")
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["out_sft"] == {
        "root": "",
        "annotation": "sft.jsonl",
        "data_augment": False,
        "repeat_time": 1,
        "length": 3,
    }
    assert meta["out_mpo"]["length"] == 1
    first, several, cut = map(json.loads, (tmp_path / "out" / "sft.jsonl").read_text().splitlines())
    assert first["conversations"] == [{"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": "3"}]
    assert (tmp_path / "out" / first["image"]).read_bytes() == png(0)
    assert (first["width"], first["height"]) == (6, 6)
    assert len(several["image"]) == 2 and several["width_list"] == [6, 6]
    assert cut["clip"] == [0.5, 1.5] and (tmp_path / "out" / cut["video"]).suffix == ".mp4"
    (line,) = (tmp_path / "out" / "mpo.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert (found["question"], found["chosen"], found["rejected"]) == ("<image>\nHow many?", "3", "4")
    assert found["answer_gt"] == "three"
    assert len(list((tmp_path / "out" / "media").rglob("*.*"))) == 3, "rows about one image share its file"


def test_what_internvl_has_no_place_for_is_a_reject_with_its_reason(tmp_path):
    elsewhere = ROW | {"id": "far", "media": [ELSEWHERE]}
    mixed = ROW | {"id": "mixed", "media": [IMAGES[0], PLAIN]}
    other = ROW | {"id": "other", "chosen": "something else", "rejected": "4"}
    done = export_internvl([ROW, elsewhere, mixed, other], tmp_path / "out")
    assert (done.rows, done.rejects) == (1, 3)
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [reject["id"] for reject in rejects] == ["far", "mixed", "other"]
    assert "uri" in rejects[0]["reason"] and "one video" in rejects[1]["reason"]


def test_tar_files_are_in_the_form_that_webdataset_reads_and_the_same_every_time(tmp_path):
    found = [ROW | {"id": str(index), "media": [IMAGES[index % 3]]} for index in range(6)]
    for name in ("one", "two"):
        export_webdataset(iter(found), tmp_path / name, shard_bytes=800)
    assert payload_sha256(tmp_path / "one") == payload_sha256(tmp_path / "two")
    shards = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(shards) > 1 and shards[0] == "shard-00000.tar"
    with tarfile.open(tmp_path / "one" / shards[0]) as tar:
        names = tar.getnames()
    # One key is one run of members, the key has no dot, and the ending says what a member is.
    assert names[:2] == ["000000000.0.png", "000000000.json"]


@pytest.mark.parametrize("export", [export_internvl, export_webdataset])
def test_an_export_is_complete_or_not_there(tmp_path, export):
    def broken():
        yield ROW
        raise RuntimeError("the dataset broke")

    with pytest.raises(RuntimeError):
        export(broken(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    export([ROW], tmp_path / "out")
    with pytest.raises(InputError, match="exists already"):
        export([ROW], tmp_path / "out")


def test_images_whose_hash_no_row_states_are_told_apart(tmp_path):
    nameless = [ROW | {"id": str(index), "media": [IMAGES[index] | {"sha256": None}]} for index in range(3)]
    export_internvl(nameless, tmp_path / "out")
    back = {row["id"]: row["media"][0]["bytes"] for row in import_all(tmp_path / "out", format="internvl").rows}
    assert back == {str(index): IMAGES[index]["bytes"] for index in range(3)}


@pytest.mark.parametrize("export", [export_internvl, export_webdataset])
def test_a_format_that_is_a_path_leads_nowhere(tmp_path, export):
    climbing = ROW | {"media": [IMAGES[0] | {"format": "/../../../../climbed"}]}
    export([climbing], tmp_path / "deep" / "out")
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert not [path for path in written if "climbed" in path]
    for path in tmp_path.rglob("*.tar"):
        with tarfile.open(path) as tar:
            assert all("/" not in name for name in tar.getnames())
