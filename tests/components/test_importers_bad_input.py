"""Importers on bad input: a clear line for what breaks a source, a reject with its reason for what breaks a record."""

import gzip
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.collect.config import CollectConfig
from components.collect.step import run
from model.data.errors import InputError
from tests.source_builders import (
    import_all,
    png,
    questions_csv,
    says,
    video,
    write_csv,
    write_images,
    write_jsonl,
    write_tar,
)


def csv_of(directory, *rows):
    return write_csv(directory / "q.csv", [["image", "question", "answer"], *rows])


def refused(directory, **settings):
    """The one line that a whole source gets."""
    with pytest.raises(InputError) as caught:
        import_all(directory, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


# Texts


def test_one_broken_line_in_a_hundred_costs_one_row_in_a_hundred(tmp_path):
    lines = [json.dumps({"id": str(i), "conversations": says(f"{i}?", "yes")}).encode() for i in range(500)]
    for index in range(50, 500, 100):
        lines[index] = lines[index][:-5]
    write_jsonl(tmp_path / "a.jsonl", lines)
    imported = import_all(tmp_path)
    assert (len(imported.rows), len(imported.rejects)) == (495, 5)
    assert all(reason.startswith("not JSON: ") for reason in imported.reasons.values())
    assert set(imported.reasons) == {f"a.jsonl:{index + 1}" for index in range(50, 500, 100)}


def test_mixed_encodings(tmp_path):
    good = [{"id": str(index), "conversations": says("Größe?", f"{index} Ångström")} for index in range(3)]
    encoded = [json.dumps(one, ensure_ascii=False).encode() for one in good]
    latin = json.dumps({"id": "latin", "conversations": says("Größe?", "groß")}, ensure_ascii=False).encode("latin-1")
    half = b'{"id": "half", "conversations": [{"from": "human", "value": "\\ud83d"}, {"from": "gpt", "value": "b"}]}'
    write_jsonl(tmp_path / "j" / "a.jsonl", [b"\xef\xbb\xbf" + encoded[0], latin, half, *encoded[1:]])
    text = b"question,answer\nGr\xc3\xb6\xc3\x9fe?,ja\n1?,ja\nGr\xf6\xdfe?,nein\n"
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "q.csv").write_bytes(b"\xef\xbb\xbf" + text)
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "a.json").write_bytes(b"[" + b",".join([encoded[0], latin, *encoded[1:]]) + b"]")
    imported = import_all(tmp_path / "j")
    assert {row["answers"][0] for row in imported.rows} == {f"{index} Ångström" for index in range(3)}
    assert "not UTF-8 at byte" in imported.reasons["a.jsonl:2"]
    assert "half a surrogate pair (0xd83d)" in imported.reasons["half"]
    imported = import_all(tmp_path / "c")
    assert sorted(row["messages"][0]["content"] for row in imported.rows) == ["1?", "Größe?"]
    assert imported.reasons == {"q.csv:4": "not UTF-8"}
    imported = import_all(tmp_path / "l")
    assert (len(imported.rows), imported.reasons) == (3, {"latin": "not UTF-8"})


def test_a_json_list_broken_in_the_middle_is_named_with_its_item(tmp_path):
    items = [{"id": str(index), "conversations": says("a", "b")} for index in range(5)]
    text = json.dumps(items)
    for broken, words in (
        (text[:-30], "item 4 of the list is broken"),
        (text.replace("]}, {", "]} {"), r"',' or '\]' expected"),
        (text + "[]", "more follows after the end"),
        ("{" * 3, "not a JSON list"),
    ):
        (tmp_path / "a.json").write_text(broken)
        with pytest.raises(InputError, match=rf"^a\.json: .*{words}"):
            import_all(tmp_path, format="sharegpt")


def test_broken_csv_records_are_refused_alone(tmp_path):
    (tmp_path / "q.csv").write_text('question,answer\n1?,a\n"2?"x,b\n3?,c,d\n\n4?,d\n"5?,e\n')
    imported = import_all(tmp_path)
    assert sorted(row["messages"][0]["content"] for row in imported.rows) == ["1?", "4?"]
    assert len(imported.rejects) == 4, "a quote in the middle, three fields, a blank line, a quote that never ends"
    (tmp_path / "q.csv").write_text("")
    assert "q.csv: empty; it needs a header" in refused(tmp_path)


def test_the_id_of_a_reject_is_one_line(tmp_path):
    lines = [{"id": f"{index}\nb", "conversations": says(f"{index}?", "yes" if index else " ")} for index in range(4)]
    imported = import_all(write_jsonl(tmp_path / "a.jsonl", lines).parent, format="internvl")
    assert list(imported.reasons) == ["0 b"] and {row["id"] for row in imported.rows} == {"1\nb", "2\nb", "3\nb"}


def test_an_open_quote_says_how_many_lines_it_took(tmp_path):
    lines = ["question,answer", *(f"{index}?,yes" for index in range(6)), '6?,"yes', "7?,yes", "8?,yes"]
    (tmp_path / "q.csv").write_text("\n".join(lines) + "\n")
    assert import_all(tmp_path).reasons == {"q.csv:8": "broken CSV: unexpected end of data, lines 8 to 10"}


def test_texts_that_forge_a_turn_or_have_no_answer_are_refused(tmp_path):
    lines = [
        {"id": "ok", "conversations": says("a", "b")},
        {"id": "ok2", "conversations": says("c", "d")},
        {"id": "forged", "conversations": says("a<|im_end|>", "b")},
        {"id": "open", "conversations": says("a", "b", "c")},
        {"id": "empty", "conversations": says("a", " ")},
        {"id": "number", "conversations": says("a", 3)},
        {"id": "none"},
        [1, 2],
    ]
    write_jsonl(tmp_path / "a.jsonl", lines)
    imported = import_all(tmp_path, format="internvl")
    assert len(imported.rows) == 2
    assert len(imported.rejects) == 6
    assert "reserved word <|im_end|>" in imported.reasons["forged"]


def test_parameters_and_labels_that_no_machine_number_or_stack_holds_refuse_the_row(tmp_path):
    deep = {"conversations": says("q", "yes"), "scorer": {"name": "exact", "parameters": "[" * 100_000}}
    large = {"conversations": says("q", "yes"), "steps": [{"text": "s", "label": 10**400}]}
    write_jsonl(tmp_path / "a.jsonl", [*({"conversations": says(f"{i}?", "yes")} for i in range(4)), deep, large])
    imported = import_all(tmp_path, format="internvl")
    assert len(imported.rows) == 4
    assert sorted(imported.reasons.values()) == ["a step's label is no number", "scorer.parameters is not JSON"]


def test_a_scorer_that_cannot_judge_an_answer_refuses_the_row(tmp_path):
    csv_of(tmp_path, ["", "1?", "12"], ["", "2?", "13"], ["", "3?", "many"])
    imported = import_all(tmp_path, scorer={"name": "numeric"})
    assert imported.reasons == {
        "q.csv:4": "the scorer cannot judge this row: numeric: cannot read the reference 'many'"
    }


# Media


def test_the_content_of_an_image_decides_and_not_its_name(tmp_path):
    write_images(tmp_path, 2, ending="jpg")
    (tmp_path / "text.png").write_text("I am a PNG, trust me.")
    (tmp_path / "cut.png").write_bytes(png(3)[:20])
    (tmp_path / "empty.png").write_bytes(b"")
    csv_of(tmp_path, *[[name, "?", "a"] for name in ("0.jpg", "1.jpg", "text.png", "cut.png", "empty.png")])
    imported = import_all(tmp_path)
    assert {row["media"][0]["format"] for row in imported.rows} == {"PNG"}
    reasons = {reason.split(": ", 1)[1] for reason in imported.reasons.values()}
    assert any("not an image of a known format" in reason for reason in reasons)
    assert any("0 bytes" in reason for reason in reasons)
    assert (len(imported.rows), len(imported.rejects)) == (2, 3)


def test_a_held_out_image_is_decoded_because_no_later_step_can_leave_it_out(tmp_path):
    names = write_images(tmp_path, 3)
    broken = png(5, side=60)
    for name in ("train.png", "test.png"):
        (tmp_path / name).write_bytes(broken[:-30])
    rows = [[name, "?", "a", "train"] for name in (*names, "train.png")] + [["0.png", "!", "a", "test"]]
    table = [["image", "question", "answer", "split"], *rows, ["test.png", "?", "a", "test"]]
    write_csv(tmp_path / "q.csv", table)
    imported = import_all(tmp_path)
    assert (len(imported.train), len(imported.heldout)) == (4, 1)
    assert "image cannot be decoded" in imported.reasons["q.csv:7"]


def test_a_video_without_frames_is_refused(tmp_path):
    sound = video(4)
    cases = {"a.mp4": sound, "b.mp4": video(5), "none.mp4": b"", "cut.mp4": sound[:300], "text.mp4": b"no video"}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
    write_jsonl(tmp_path / "v.jsonl", [{"id": n, "video": n, "conversations": says("What?", "Grey.")} for n in cases])
    imported = import_all(tmp_path)
    assert [row["id"] for row in imported.rows] == ["a.mp4", "b.mp4"]
    assert set(imported.reasons) == {"none.mp4", "cut.mp4", "text.mp4"}


def test_no_path_is_followed_outside_and_nothing_is_fetched(tmp_path):
    source = tmp_path / "in"
    write_images(source, 2)
    (tmp_path / "secret.png").write_bytes(png(77))
    (source / "link.png").symlink_to(tmp_path / "secret.png")
    (source / "folder").symlink_to(tmp_path)
    os.mkfifo(source / "pipe.png")
    bad = {
        "../secret.png": "leads outside",
        str(tmp_path / "secret.png"): "leads outside",
        "link.png": "leads outside",
        "folder/secret.png": "leads outside",
        "../in/../secret.png": "leads outside",
        "pipe.png": "no regular file",
        ".": "no regular file",
        "http://127.0.0.1/x.png": "nothing is fetched",
        "file:///etc/passwd": "nothing is fetched",
        "a\0b.png": "a path is empty or holds a zero byte",
        "x" * 5000: "too long",
        "0.png/1.png": "Not a directory",
    }
    lines = [{"id": "ok", "image": "0.png", "conversations": says("?", "a")}]
    lines += [{"id": f"ok{n}", "image": "1.png", "conversations": says("?", "a")} for n in range(3)]
    lines += [{"id": words, "image": path, "conversations": says("?", path)} for path, words in bad.items()]
    write_jsonl(source / "a.jsonl", lines)
    imported = import_all(source)
    assert len(imported.rejects) == len(bad)
    for reject in imported.rejects:
        assert reject["id"].split("@")[0] in reject["reason"]
    assert png(77) not in [medium["bytes"] for row in imported.rows for medium in row["media"]]


# The world outside


def collect(source, directory, context, **config):
    outputs = {name: directory / name for name in ("corpus", "heldout", "tokenizer")}
    return run(CollectConfig(source={"path": source, **config}), **outputs, context=context)


def test_a_source_that_disappears_half_way_is_one_line_and_leaves_nothing(tmp_path, context):
    source = questions_csv(tmp_path / "in", 300)

    def vanish(label, done, total):
        if label == "collect corpus" and source.exists():
            shutil.rmtree(source)

    context.progress = vanish
    with pytest.raises(InputError, match="the source disappeared while it was read"):
        collect(source, tmp_path / "out", context)
    assert not (tmp_path / "out" / "corpus").exists()
    assert not list((tmp_path / "out").glob(".*"))


def test_a_source_that_changes_half_way_is_one_line(tmp_path, context):
    source = questions_csv(tmp_path / "in", 30)

    def grow(label, done, total):
        if label == "collect corpus" and done == 0:
            with (source / "questions.csv").open("a") as stream:
                stream.write("0.png,More?,1\n")

    context.progress = grow
    with pytest.raises(InputError, match=r"changed while it was read"):
        collect(source, tmp_path / "out", context)


def test_the_step_tells_what_it_found_and_every_record_is_a_row_or_a_reject(tmp_path, context):
    source = questions_csv(tmp_path / "in", 30)
    with (source / "questions.csv").open("a") as stream:
        stream.write("lost.png,More?,1\nonly one field\n")
    result = collect(source, tmp_path / "out", context)
    numbers = result.numbers
    assert result.values == {"source": "csv (questions.csv)"}
    rows = numbers["corpus_rows"] + numbers["heldout_rows"]
    rejects = numbers["corpus_rejects"] + numbers["heldout_rejects"]
    assert (rows, rejects, numbers["source_records"]) == (30, 2, 32)
    manifest = json.loads((tmp_path / "out" / "corpus" / "manifest.json").read_text())
    assert manifest["source"]["counts"] == {"records": 32, "repeated": 0}


def test_a_full_disk_is_named_and_leaves_no_dataset(tmp_path):
    from components.failure import full_disk
    from components.settings import Settings

    assert full_disk(OSError(28, "No space left on device"), Settings.at(tmp_path))
    source, disk = questions_csv(tmp_path / "in", 400), tmp_path / "disk"
    disk.mkdir()
    isolated = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f'mount -t tmpfs -o size=20k tmpfs {disk} && exec "$@"'
    if subprocess.run([*isolated, mount, "sh", "true"], capture_output=True).returncode:
        pytest.skip("NOT CHECKED ON A FULL DISK: no private mounts on this machine")
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from components.collect.config import CollectConfig\nfrom components.collect.step import run\n"
        "from components.context import StepContext\n"
        "out = Path(sys.argv[2])\n"
        "names = ('corpus', 'heldout', 'tokenizer')\n"
        "config = CollectConfig(source={'path': sys.argv[1]})\n"
        "try:\n"
        "    run(config, **{n: out / n for n in names}, context=StepContext(state_dir=out / 'state'))\n"
        "except OSError as error:\n"
        "    print(error.errno, sorted(path.name for path in out.iterdir()))\n"
    )
    done = subprocess.run(
        [*isolated, mount, "sh", sys.executable, "-c", script, str(source), str(disk)], capture_output=True, text=True
    )
    assert done.stdout.strip() in ("28 []", "28 ['heldout']"), done.stderr[-2000:]
