"""Importers: which format a source is, and what its records become (those of InternVL: test_importers_internvl.py)."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.collect.importers.config import AnySource
from components.collect.importers.formats import default_task
from model.data.errors import InputError
from tests.source_builders import (
    exchange,
    import_all,
    png,
    questions_csv,
    says,
    the_row,
    video,
    write_csv,
    write_images,
    write_jsonl,
    write_tar,
)

# LLaVA, ShareGPT, StreamingVLM


def test_llava_is_a_list_that_may_be_larger_than_what_is_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("components.collect.importers.json_records._FIRST_READ", 16)
    write_images(tmp_path / "coco", 3)
    items = [
        {"id": f"{index:012d}", "image": f"coco/{index}.png", "conversations": says("<image>\nWhat?", "Grün \u2603.")}
        for index in range(3)
    ]
    (tmp_path / "llava.json").write_text("\ufeff" + json.dumps(items, indent=1, ensure_ascii=False), "utf-8")
    imported = import_all(tmp_path)
    assert imported.importer.found == "llava (llava.json)"
    assert [row["id"] for row in imported.rows] == [item["id"] for item in items]
    assert imported.rows[1]["answers"] == ["Grün \u2603."]
    assert imported.rejects == []


def test_sharegpt_has_two_spellings(tmp_path):
    write_images(tmp_path, 1)
    lines = [
        {"id": "a", "messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "b"}]},
        {"id": "c", "system": "Hm.", "conversations": says("d", "e"), "images": []},
        {"id": "f", "conversations": [{"from": "function_call", "value": "g"}]},
    ]
    lines[0]["images"] = ["0.png"]
    write_jsonl(tmp_path / "chat.jsonl", lines)
    imported = import_all(tmp_path)
    assert imported.importer.found == "sharegpt (chat.jsonl)"
    assert exchange(the_row(imported, "c")) == [("system", "Hm."), ("user", "d"), ("assistant", "e")]
    assert the_row(imported, "a")["media"][0]["bytes"] == png(0)
    assert "'function_call' has no place" in imported.reasons["chat.jsonl:3"]


def streamed(words, previous="", **video_part):
    user = [
        {"type": "video", "video": "game.mp4", "video_start": 0.0, "video_end": 2.0} | video_part,
        {"type": "text", "text": "Comment.", "previous": previous},
    ]
    return [
        {"role": "user", "content": user},
        {"role": "assistant", "content": [{"type": "text_stream", "text_stream": words}]},
    ]


def test_streaming_lines_keep_the_seconds_of_their_words(tmp_path):
    (tmp_path / "game.mp4").write_bytes(video(8))
    (tmp_path / "second.mp4").write_bytes(video(7))
    spoken = [[0.1, 0.4, "He"], [0.4, 0.9, "shoots"]]
    asked = streamed(spoken)
    asked[1]["content"][0]["qa_stream"] = [[1.0, "Who?", "Him."]]
    lines = [streamed(spoken), streamed(spoken, previous="Before.", video="second.mp4"), asked]
    write_jsonl(tmp_path / "train_with_seeks.jsonl", lines)
    write_jsonl(tmp_path / "train_seeks.jsonl", [[0, 10, 20]])
    imported = import_all(tmp_path)
    assert imported.importer.found == "streaming (train_with_seeks.jsonl)"
    first, second = imported.rows
    assert first["words"] == [
        {"start": 0.1, "end": 0.4, "text": "He"},
        {"start": 0.4, "end": 0.9, "text": "shoots"},
    ]
    assert exchange(first) == [("user", "<video>\nComment."), ("assistant", "He shoots")]
    assert (first["media"][0]["start"], first["media"][0]["end"]) == (0.0, 2.0)
    assert exchange(second)[0] == ("system", "Before.")
    assert "qa_stream" in imported.reasons["train_with_seeks.jsonl:3"]


def test_long_videos_may_stay_where_they_are(tmp_path):
    (tmp_path / "game.mp4").write_bytes(video(8))
    write_jsonl(tmp_path / "a.jsonl", [streamed([[0.0, 0.5, "Go"]]), streamed([[0.0, 0.5, "Stop"]], video_end=3.0)])
    write_jsonl(tmp_path / "b.jsonl", [streamed([[0.0, 0.5, "Far"]], video="other.mp4")])
    (tmp_path / "other.mp4").write_bytes(video(4))
    for row in import_all(tmp_path, videos="uri", max_row_bytes=1024).rows:
        (medium,) = row["media"]
        assert (medium["bytes"], medium["uri"]) in ((None, "game.mp4"), (None, "other.mp4"))
        assert len(medium["sha256"]) == 64


# Tables


def test_a_saved_hugging_face_directory_gives_its_splits(tmp_path):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("question", pa.string()), ("answers", pa.list_(pa.string()))])
    for split, count in (("train", 5), ("validation", 2)):
        directory = tmp_path / split
        directory.mkdir()
        images = [{"bytes": png(index), "path": "x.jpg"} for index in range(count)]
        rows = [{"image": one, "question": f"{split}?", "answers": ["a", "b", "a"]} for one in images]
        with pa.OSFile(str(directory / "data-00000-of-00001.arrow"), "w") as file, pa.ipc.new_stream(file, schema) as w:
            w.write_table(pa.Table.from_pylist(rows, schema=schema), max_chunksize=2)
        (directory / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
        (directory / "dataset_info.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    imported = import_all(tmp_path)
    assert imported.importer.found.startswith("huggingface (")
    assert (len(imported.train), len(imported.heldout)) == (5, 2)
    row = imported.heldout[0]
    assert exchange(row) == [("user", "<image>\nvalidation?"), ("assistant", "a")]
    assert row["answers"] == ["a", "b"]
    assert row["media"][0]["format"] == "PNG"


def test_parquet_named_by_split_is_hugging_faces_too(tmp_path):
    (tmp_path / "data").mkdir()
    for name, count in (("train-00000-of-00001", 4), ("test-00000-of-00001", 3)):
        asked = [{"role": "user", "content": name}, {"role": "assistant", "content": "ok"}]
        rows = [{"messages": asked}] * count
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / f"{name}.parquet")
    imported = import_all(tmp_path)
    assert (len(imported.train), len(imported.heldout)) == (4, 3)


def test_any_parquet_with_a_mapping_of_columns(tmp_path):
    names = write_images(tmp_path, 12)
    rows = [
        {"key": index, "foto": name, "frage": f"{index}?", "antwort": index * 1.5} for index, name in enumerate(names)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=5)
    columns = {"id": "key", "image": "foto", "question": "frage", "answer": "antwort"}
    judge = {"name": "numeric", "parameters": {"tolerance": 0.1}}
    imported = import_all(tmp_path, format="parquet", columns=columns, scorer=judge, task="measure", license="CC0-1.0")
    row = the_row(imported, "3")
    assert exchange(row) == [("user", "<image>\n3?"), ("assistant", "4.5")]
    assert (row["task"], row["license"], row["source"]) == ("measure", "CC0-1.0", tmp_path.name)
    assert row["scorer"] == {"name": "numeric", "parameters": '{"tolerance": 0.1}'}
    with pytest.raises(InputError, match=r"no column 'bild' \(columns.image\); there are 'key', 'foto'"):
        import_all(tmp_path, format="parquet", columns=columns | {"image": "bild"})
    with pytest.raises(InputError, match="no column tells the answer"):
        import_all(tmp_path, format="parquet")


def test_a_csv_asks_about_the_images_beside_it(tmp_path):
    write_images(tmp_path, 4)
    table = [
        ["image", "question", "answer", "split", "id", "task"],
        ["0.png", "How\nmany?", "3", "train", "a", "count"],
        ["1.png", 'A "quoted", one', "x", "test", "b", ""],
        ["", "No image?", "none", "", "c", ""],
        ["3.png", "Where?", "here", "elsewhere", "d", ""],
        ["2.png", "Which?", "", "train", "e", ""],
    ]
    write_csv(tmp_path / "q.csv", table)
    imported = import_all(tmp_path, heldout_share=0.0001)
    assert [row["id"] for row in imported.heldout] == ["b"]
    assert [row["id"] for row in imported.train] == ["a", "c"]
    assert exchange(the_row(imported, "a"))[0] == ("user", "<image>\nHow\nmany?")
    assert (the_row(imported, "a")["task"], the_row(imported, "b")["task"]) == ("count", "answer")
    assert the_row(imported, "c")["media"] == []
    assert "split 'elsewhere'" in imported.reasons["q.csv:6"]
    assert imported.reasons["q.csv:7"] == "answer is missing"


# WebDataset and captions


def test_webdataset_members_with_one_key_make_a_row(tmp_path):
    chat = json.dumps({"conversations": says("<image> and <image>?", "Two.")}).encode()
    asked = json.dumps({"question": "Colour?", "answer": ["red", "crimson"]}).encode()
    members = [
        ("a/000.jpg", png(1)),
        ("a/000.txt", b"Ein Bild.\n"),
        ("a/001.0.png", png(2)),
        ("a/001.1.png", png(3)),
        ("a/001.json", chat),
        ("b.json", asked),
        ("b.webp", png(4)),
        ("c.mp4", video()),
        ("c.txt", b"It darkens."),
        ("d.jpg", png(5)),
    ]
    write_tar(tmp_path / "00000.tar", members)
    imported = import_all(tmp_path, prompt="Describe it.")
    assert exchange(the_row(imported, "a/000")) == [("user", "<image>\nDescribe it."), ("assistant", "Ein Bild.")]
    assert [medium["bytes"] for medium in the_row(imported, "a/001")["media"]] == [png(2), png(3)]
    assert the_row(imported, "b")["answers"] == ["red", "crimson"]
    assert the_row(imported, "c")["media"][0]["kind"] == "video"
    assert imported.rejects[0]["reason"] == "no txt or json beside the media"
    assert len(imported.rows) == 4


def test_a_folder_of_captioned_images(tmp_path):
    write_images(tmp_path / "cats", 3)
    for name, caption in (("cats/0", "A cat."), ("cats/1", "Two cats.\n"), ("cats/lost", "No image.")):
        (tmp_path / f"{name}.txt").write_text(caption)
    (tmp_path / "cats" / "0-b.png").write_bytes(png(9))
    imported = import_all(tmp_path)
    assert imported.importer.found.startswith("captions (cats/")
    assert [(row["id"], row["answers"]) for row in imported.rows] == [("cats/0", ["A cat."]), ("cats/1", ["Two cats."])]
    assert imported.reasons == {
        "cats/0-b": "no text beside 0-b.png",
        "cats/2": "no text beside 2.png",
        "cats/lost": "no image or video beside lost.txt",
    }
    assert {row["task"] for row in imported.rows} == {"caption"}


# Which format a source is


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "tar", "tar.gz"])
def test_endings_in_capitals_are_read_too(tmp_path, ending):
    for part, name in enumerate((f"a.{ending}", f"B.{ending.upper()}")):
        asked = [f"{part}{index}?" for index in range(4)]
        if ending == "parquet":
            pq.write_table(pa.table({"question": asked, "answer": ["yes"] * 4}), tmp_path / name)
        elif ending == "csv":
            write_csv(tmp_path / name, [["question", "answer"], *([one, "yes"] for one in asked)])
        elif ending.startswith("tar"):
            members = [(f"{one}.json", json.dumps({"question": one, "answer": "yes"}).encode()) for one in asked]
            data = write_tar(tmp_path / name, members).read_bytes()
            (tmp_path / name).write_bytes(gzip.compress(data) if ending == "tar.gz" else data)
        else:
            values = [{"id": one, "conversations": says(one, "yes")} for one in asked]
            text = json.dumps(values) if ending == "json" else "\n".join(map(json.dumps, values))
            (tmp_path / name).write_text(text)
    assert len(import_all(tmp_path).rows) == 8


def test_files_of_two_formats_side_by_side_are_not_guessed_at(tmp_path):
    questions_csv(tmp_path, 3)
    write_jsonl(tmp_path / "chat.jsonl", [{"messages": [{"role": "user", "content": "a"}]}])
    with pytest.raises(InputError, match=r"holds sharegpt \(chat.jsonl\) and csv \(questions.csv\); say which"):
        import_all(tmp_path)
    assert len(import_all(tmp_path, file="questions.csv").rows) == 3
    assert len(import_all(tmp_path, format="csv").rows) == 3


def test_a_directory_of_nothing_known_is_refused(tmp_path):
    (tmp_path / "notes.md").write_text("Nothing.")
    with pytest.raises(InputError, match=r"no known format in it; name one: collect\.source\.format"):
        import_all(tmp_path)
    with pytest.raises(InputError, match="no such directory"):
        import_all(tmp_path / "nowhere")


def test_the_guide_names_every_format_and_the_family_of_its_rows():
    guide = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    listed = {
        cells[1].strip(" `"): cells[3] for cells in (line.split("|") for line in guide.splitlines()) if len(cells) > 4
    }
    formats = {branch.__metadata__[0].tag: branch.__origin__ for branch in AnySource.__args__[0].__args__}
    for name, section in formats.items():
        if name != "auto":
            assert f"`{default_task(section(path=Path()))}`" in listed[name]
