"""Importers on broken and hostile files: a clear line for what breaks a source, a reject for what breaks a record."""

import gzip
import io
import json
import os
import resource
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.source_builders import csv_of, import_all, png, refused, says, write_images, write_jsonl, write_tar

# Containers


def test_a_truncated_parquet_is_named(tmp_path):
    rows = [{"question": f"{index}?" * 50, "answer": "yes"} for index in range(300)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=50)
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data[: len(data) // 2])
    assert "t.parquet: not a readable Parquet file" in refused(tmp_path, format="parquet")


def test_a_parquet_broken_inside_is_named_with_its_row(tmp_path):
    rows = [{"question": os.urandom(40).hex(), "answer": "yes"} for _ in range(2000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=500, write_page_checksum=True)
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = b"\xff" * 400
    (tmp_path / "t.parquet").write_bytes(data)
    assert "t.parquet: broken after row" in refused(tmp_path, format="parquet")


def test_a_truncated_arrow_file_is_named(tmp_path):
    table = pa.table({"question": ["what?" * 100] * 500, "answer": ["yes"] * 500})
    with pa.OSFile(str(tmp_path / "data.arrow"), "w") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    os.truncate(tmp_path / "data.arrow", (tmp_path / "data.arrow").stat().st_size // 2)
    assert "data.arrow: broken after row" in refused(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_truncated_tar_is_named(tmp_path, packed):
    members = [(f"{index}.{kind}", data) for index in range(20) for kind, data in (("png", png(index)), ("txt", b"x"))]
    data = write_tar(tmp_path / "a.tar", members).read_bytes()
    (tmp_path / "a.tar").unlink()
    name = "a.tar.gz" if packed else "a.tar"
    data = gzip.compress(data) if packed else data
    (tmp_path / name).write_bytes(data[: int(len(data) * 0.5) + 100])
    assert f"{name}: a truncated or damaged tar file" in refused(tmp_path)


def test_a_tar_cut_between_members_or_glued_to_another_is_named(tmp_path):
    data = write_tar(tmp_path / "a.tar", [("0.png", png(0)), ("0.txt", b"A cat."), ("1.txt", b"B")]).read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: 4 * 512])
    assert "a.tar: a truncated or damaged tar file (its end is missing)" in refused(tmp_path)
    (tmp_path / "a.tar").write_bytes(data + data)
    assert "a.tar: a truncated or damaged tar file (more follows after its end)" in refused(tmp_path)


def test_tar_members_that_climb_out_or_link_are_rejects_and_touch_nothing(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    with tarfile.open(source / "a.tar", "w") as tar:
        for name, kind, target in (
            ("../up.txt", tarfile.REGTYPE, ""),
            ("/etc/root.txt", tarfile.REGTYPE, ""),
            ("soft.txt", tarfile.SYMTYPE, "../secret.txt"),
            ("hard.txt", tarfile.LNKTYPE, "/etc/passwd"),
            ("pipe.txt", tarfile.FIFOTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
        for index in range(3):
            for kind, data in (("png", png(index)), ("txt", b"A cat.")):
                member = tarfile.TarInfo(f"{index}.{kind}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    imported = import_all(source)
    assert len(imported.rows) == 3
    reasons = " | ".join(sorted(imported.reasons.values()))
    assert len(imported.rejects) == 5
    for words in ("../up.txt: a path that leads outside", "soft.txt: a link", "hard.txt: a link", "no regular file"):
        assert words in reasons
    assert "/etc/root.txt: a path that leads outside" in reasons
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "secret.txt"]


def test_a_tar_header_that_claims_gigabytes_is_not_believed(tmp_path):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 5 << 30
    (tmp_path / "a.tar").write_bytes(header.tobuf() + b"\0" * 1024)
    assert "a header claims" in refused(tmp_path)


def test_a_tar_with_a_broken_sparse_map_or_an_endless_chain_of_names_is_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("x.txt")
        member.pax_headers = {"GNU.sparse.map": "a,b", "GNU.sparse.size": "100"}
        tar.addfile(member)
    assert "a.tar: a truncated or damaged tar file" in refused(tmp_path)
    link = tarfile.TarInfo("././@LongLink")
    link.type, link.size = tarfile.GNUTYPE_LONGNAME, 2
    (tmp_path / "a.tar").write_bytes((link.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")) * 3000)
    assert "a.tar: a truncated or damaged tar file" in refused(tmp_path)


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"start": "x", "end": 1}, "start is no number"),
        ({"width": 10**30}, "width is no number of pixels"),
        ({"format": ["PNG"]}, "format is no text"),
        ({"format": "\ud800"}, "half a surrogate pair"),
        ({"end": 10**400}, "end is no number"),
        ({"member": ["png"]}, "no member"),
    ],
)
def test_an_export_with_a_forged_medium_costs_that_row_alone(tmp_path, facts, problem):
    turns = [{"role": "user", "content": "<image>\n?"}, {"role": "assistant", "content": "yes"}]
    forged = {"id": "forged", "messages": turns, "media": [{"kind": "image", "member": "png"} | facts]}
    sound = [(f"{index}.{kind}", data) for index in range(4) for kind, data in (("png", png(index)), ("txt", b"x"))]
    write_tar(tmp_path / "a.tar", [*sound, ("z.png", png(9)), ("z.json", json.dumps(forged).encode())])
    imported = import_all(tmp_path)
    assert len(imported.rows) == 4
    (reason,) = imported.reasons.values()
    assert problem in reason


@pytest.mark.parametrize(
    "column",
    [
        {"data_source": [1, 2, 3]},
        {"images": [1, 2, 3]},
        {"images": [[{"bytes": "text", "path": None}]] * 3},
        {"images": [[{"bytes": [1, 2], "path": None}]] * 3},
    ],
)
def test_rl_columns_of_another_type_are_rejects(tmp_path, column):
    sound = {"extra_info": [{"question": f"{i}?"} for i in range(3)], "reward_model": [{"ground_truth": "yes"}] * 3}
    pq.write_table(pa.table(sound), tmp_path / "a.parquet")
    pq.write_table(pa.table(sound | column), tmp_path / "b.parquet")
    imported = import_all(tmp_path, format="internvl_rl")
    assert (len(imported.rows), len(imported.rejects)) == (3, 3)


# Sizes


def test_a_row_over_the_limit_is_refused_before_it_is_read(tmp_path):
    write_images(tmp_path, 3)
    with (tmp_path / "sparse.png").open("wb") as stream:
        stream.truncate(1 << 40)
    csv_of(tmp_path, *[[f"{index}.png", "a", "b"] for index in range(3)], ["sparse.png", "a", "b"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (reject,) = import_all(tmp_path).rejects
    assert reject["reason"].startswith("media[0]: sparse.png: 1099511627776 bytes")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_long_line_a_large_member_and_a_large_cell_are_refused_alone(tmp_path):
    long = json.dumps({"id": "long", "conversations": says("a", "b" * 5000)}).encode()
    chats = [{"id": str(index), "conversations": says(f"{index}", "yes")} for index in range(3)]
    write_jsonl(tmp_path / "j" / "a.jsonl", [chats[0], long, *chats[1:]])
    members = [("0.txt", b"a"), ("0.png", png(0)), ("1.txt", b"b" * 5000), ("1.png", png(1)), ("2.txt", b"c")]
    write_tar(tmp_path / "t" / "a.tar", [*members, ("2.png", png(2))])
    rows = [{"question": "?", "answer": answer} for answer in ("a", "b" * 5000, "c")]
    (tmp_path / "p").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p" / "a.parquet")
    csv_of(tmp_path / "c", ["", "x?", "a"], ["", "y?", "b" * 5000], ["", "z?", "c"])
    for name, kept in (("j", 3), ("t", 2), ("p", 2), ("c", 2)):
        imported = import_all(tmp_path / name, max_row_bytes=2000)
        assert (len(imported.rows), len(imported.rejects)) == (kept, 1), name
        assert "max_row_bytes" in imported.rejects[0]["reason"] or "CSV" in imported.rejects[0]["reason"], name
