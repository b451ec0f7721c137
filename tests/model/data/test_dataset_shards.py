"""Datasets on disk: what is written is read, and damage is named."""

import json
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data import shards
from model.data.artifact import payload_sha256
from model.data.errors import InputError
from model.data.schema import Reject, image_media, scorer
from model.data.shards import open_dataset, write_dataset


def row(index, answer="3"):
    return {
        "id": f"row-{index}",
        "source": "test",
        "license": "CC0-1.0",
        "media": [image_media(bytes([index % 256]) * 40, image_format="PNG", width=4, height=4)],
        "messages": [{"role": "user", "content": "<image>\nHow many?"}, {"role": "assistant", "content": answer}],
        "task": "count",
        "answers": [answer],
        "scorer": scorer("numeric", tolerance=0.5),
    }


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "data", (row(i) for i in range(1200)), shards=2)


def test_rows_come_back_in_order_whatever_the_number_of_shards(tmp_path):
    rows = [row(i) for i in range(1300)]
    for count in (1, 3, 5):
        written = write_dataset(tmp_path / str(count), iter(rows), shards=count)
        assert [path.name for path in written.shards] == [f"shard-{i:05d}-of-{count:05d}.parquet" for i in range(count)]
        opened = open_dataset(tmp_path / str(count), verify=True)
        assert len(opened) == 1300
        columns = dict.fromkeys(("chosen", "rejected", "steps", "words"))
        assert list(opened.rows()) == [one | columns for one in rows]


def test_places_map_the_files_to_the_order_of_rows(tmp_path):
    opened = write_dataset(tmp_path / "data", (row(i) for i in range(1300)), shards=2)
    ids = [name for path in opened.shards for name in pq.read_table(path, columns=["id"])["id"].to_pylist()]
    placed = sorted(zip(opened.places(), ids, strict=True))
    assert [name for _, name in placed] == [one["id"] for one in opened.rows()]


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_dataset(tmp_path / name, (row(i) for i in range(700)), shards=2)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


def test_the_manifest_tells_the_identity_of_the_payload(dataset):
    assert dataset.manifest["payload_sha256"] == payload_sha256(dataset.path)
    assert dataset.manifest["rows"] == 1200


def test_large_media_make_small_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "GROUP_BYTES", 100)
    written = write_dataset(tmp_path / "data", (row(i) for i in range(9)))
    with pq.ParquetFile(written.shards[0]) as file:
        assert file.num_row_groups == 3


def test_rejects_and_manifest_are_read_after_the_rows(tmp_path):
    rejects: list[Reject] = []
    facts = {}

    def rows():
        yield row(0)
        rejects.append({"id": "row-1", "step": "test", "reason": "odd"})
        facts["funnel"] = {"rows_in": 2}

    write_dataset(tmp_path / "data", rows(), rejects=rejects, extra_manifest=facts)
    opened = open_dataset(tmp_path / "data")
    assert opened.rejects() == [{"id": "row-1", "step": "test", "reason": "odd"}]
    assert opened.manifest["funnel"] == {"rows_in": 2}
    assert opened.manifest["rejects"] == 1


def test_an_empty_dataset_is_a_dataset(tmp_path):
    write_dataset(tmp_path / "data", [], shards=2)
    assert list(open_dataset(tmp_path / "data", verify=True).rows()) == []


def test_stage_columns_survive(tmp_path):
    extra = {
        "chosen": "3",
        "rejected": "4",
        "steps": [{"text": "one two three", "label": 1.0}],
        "words": [{"start": 0.0, "end": 0.5, "text": "three"}],
    }
    write_dataset(tmp_path / "data", [row(0) | extra])
    (found,) = open_dataset(tmp_path / "data").rows()
    assert {name: found[name] for name in extra} == extra


def test_a_failure_while_writing_leaves_nothing(tmp_path):
    def rows():
        yield row(0)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        write_dataset(tmp_path / "data", rows())
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_writing_leaves_no_dataset_and_no_obstacle(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from model.data.shards import write_dataset\n"
        "def rows():\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "    yield {}\n"
        "write_dataset(Path(sys.argv[1]), rows())\n"
    )
    target = tmp_path / "data"
    done = subprocess.run([sys.executable, "-c", script, str(target)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(InputError, match="no such dataset directory"):
        open_dataset(target)
    write_dataset(target, [row(0)])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_nothing_is_overwritten(dataset):
    with pytest.raises(InputError, match="exists already"):
        write_dataset(dataset.path, [row(0)])
    assert len(open_dataset(dataset.path)) == 1200


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"answers": "3"}, "row 'row-7': answers is a string"),
        ({"answers": [3]}, "row 'row-7': does not fit the schema"),
        ({"source": None}, "row 'row-7': column source is missing"),
        ({"colour": "red"}, "row 'row-7': unknown column 'colour'"),
        ({"messages": "hello"}, "row 'row-7': does not fit the schema"),
        ({"media": [{"kind": "image", "bytes": "text", "width": "wide"}]}, "row 'row-7': does not fit the schema"),
    ],
)
def test_a_row_of_wrong_types_is_named(tmp_path, bad, message):
    rows = [row(index) | (bad if index == 7 else {}) for index in range(20)]
    with pytest.raises(InputError) as caught:
        write_dataset(tmp_path / "data", rows)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def damage_missing_directory(path):
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    return path.name


def damage_missing_manifest(path):
    (path / "manifest.json").unlink()
    return "manifest.json: missing"


def damage_half_manifest(path):
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text[: len(text) // 2])
    return "manifest.json: not a dataset manifest"


def damage_manifest_of_another_kind(path):
    (path / "manifest.json").write_text("[1, 2]")
    return "manifest.json: not a dataset manifest"


def damage_future_version(path):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    return "schema version 99"


def damage_path_outside(path):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["shards"][0]["file"] = "../data/shard-00000-of-00002.parquet"
    (path / "manifest.json").write_text(json.dumps(manifest))
    return "its list of files"


def damage_missing_shard(path):
    (path / "shard-00001-of-00002.parquet").unlink()
    return "shard-00001-of-00002.parquet: missing"


def damage_truncated_shard(path):
    shard = path / "shard-00000-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    return "shard-00000-of-00002.parquet:"


def damage_missing_rejects(path):
    (path / "rejects.parquet").unlink()
    return "rejects.parquet: missing"


def damage_flipped_byte(path):
    shard = path / "shard-00000-of-00002.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    return "shard-00000-of-00002.parquet: its SHA-256"


@pytest.mark.parametrize("damage", [value for name, value in sorted(globals().items()) if name.startswith("damage_")])
def test_damage_is_named_in_one_line(dataset, damage):
    message = damage(dataset.path)
    with pytest.raises(InputError) as caught:
        open_dataset(dataset.path, verify=True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def forge_entry(path, name):
    """Make the manifest agree with a damaged shard, so that only the Parquet reader can notice."""
    manifest = json.loads((path / "manifest.json").read_text())
    for entry in manifest["shards"]:
        if entry["file"] == name:
            entry["bytes"] = (path / name).stat().st_size
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_shard_that_is_no_parquet_is_named(dataset):
    name = dataset.shards[1].name
    dataset.shards[1].write_bytes(b"PAR1 but not really PAR1")
    forge_entry(dataset.path, name)
    with pytest.raises(InputError, match="not a readable Parquet file"):
        open_dataset(dataset.path)


def test_a_shard_of_another_schema_is_named(dataset):
    name = dataset.shards[1].name
    pq.write_table(pa.table({"id": ["a"]}), dataset.shards[1])
    forge_entry(dataset.path, name)
    with pytest.raises(InputError, match="column 'id' is not the dataset schema's"):
        open_dataset(dataset.path)


@settings(max_examples=25, deadline=None)
@given(
    answers=st.lists(st.lists(st.text(max_size=20), max_size=3), max_size=12),
    count=st.integers(1, 4),
)
def test_any_text_survives_the_round_trip(tmp_path_factory, answers, count):
    rows = [row(index) | {"answers": one} for index, one in enumerate(answers)]
    target = tmp_path_factory.mktemp("round") / "data"
    write_dataset(target, rows, shards=count)
    assert [one["answers"] for one in open_dataset(target).rows()] == answers
