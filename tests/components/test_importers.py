"""Importers: what each format's records become."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.collect.importers.config import AnySource
from components.collect.importers.formats import default_task
from components.collect.importers.rows import Ids
from model.data.errors import InputError
from model.data.schema import check_row
from tests.source_builders import (
    exchange,
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


def the_row(imported, row_id):
    (row,) = (row for row in imported.rows if row["id"] == row_id)
    assert check_row(row) is None
    return row


# InternVL


@pytest.fixture
def internvl(tmp_path):
    """A meta-json of two sets, with every kind of line."""
    write_images(tmp_path / "media", 4)
    (tmp_path / "media" / "v.mp4").write_bytes(video(8))
    lines = [
        {"id": 7, "image": "0.png", "width": 6, "height": 6, "conversations": says("<image>\nHow many?", "3")},
        {"id": "bare", "image": "1.png", "conversations": says("What is it?", "A cat.")},
        {"id": "two", "image": ["0.png", "1.png"], "conversations": says("<image> or <image>?", "The first.")},
        {"id": "clip", "video": "v.mp4", "clip": [1, 2.5], "conversations": says("What happens?", "It darkens.")},
        {
            "id": "long",
            "conversations": [
                {"from": "system", "value": "Be brief."},
                *says("One and one?", "Two.", "And one?", "Three."),
            ],
        },
        {"id": "tool", "conversations": [*says("Look.", "Yes."), {"from": "function", "value": "{}"}]},
        {"id": "page", "image": "2.png", "conversations": [{"from": "pretrain", "value": "<image>\nA page of text."}]},
        {"id": "woven", "image": ["2.png"], "conversations": [{"from": "pretrain", "value": "See <image> here."}]},
    ]
    write_jsonl(tmp_path / "sft.jsonl", lines)
    pairs = [
        {"image": "3.png", "question": "<image>\nWhy?", "chosen": "Thus.", "rejected": "No.", "answer_gt": 12},
        {"question": "Why?", "chosen": "So.", "rejected": "Hm.", "system_prompt": "Think."},
        {"question": "Why?", "chosen": "So."},
    ]
    write_jsonl(tmp_path / "mpo.jsonl", pairs)
    meta = {
        "sft": {"root": "media", "annotation": "sft.jsonl", "data_augment": True, "repeat_time": 1, "length": 8},
        "mpo": {"root": "media/", "annotation": "mpo.jsonl", "data_augment": False, "repeat_time": 1, "length": 3},
    }
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    return tmp_path


def test_internvl_lines_become_rows_with_their_texts_as_they_are(internvl):
    imported = import_all(internvl)
    assert imported.importer.found == "internvl (meta.json)"
    row = the_row(imported, "7")
    assert exchange(row) == [("user", "<image>\nHow many?"), ("assistant", "3")]
    assert row["media"][0]["bytes"] == png(0)
    assert (row["media"][0]["format"], row["media"][0]["width"]) == ("PNG", 6)
    assert (row["answers"], row["task"], row["scorer"]["name"]) == (["3"], "conversation", "exact")
    assert exchange(the_row(imported, "two"))[0] == ("user", "<image> or <image>?")
    assert exchange(the_row(imported, "long"))[0] == ("system", "Be brief.")
    assert the_row(imported, "long")["answers"] == ["Three."]


def test_a_single_image_without_a_place_in_the_text_comes_first(internvl):
    assert exchange(the_row(import_all(internvl), "bare"))[0] == ("user", "<image>\nWhat is it?")


def test_a_clip_keeps_its_seconds_and_its_video_its_bytes(internvl):
    row = the_row(import_all(internvl), "clip")
    (medium,) = row["media"]
    assert (medium["kind"], medium["start"], medium["end"], medium["format"]) == ("video", 1.0, 2.5, "MP4")
    assert medium["bytes"] == video(8)
    assert exchange(row)[0] == ("user", "<video>\nWhat happens?")


def test_a_pretrain_turn_answers_an_empty_question_about_its_images(internvl):
    row = the_row(import_all(internvl), "page")
    assert exchange(row) == [("user", "<image>\n"), ("assistant", "A page of text.")]
    assert row["task"] == "pretrain"


def test_turns_that_no_row_has_a_place_for_are_rejects_that_say_so(internvl):
    reasons = import_all(internvl).reasons
    assert "'function' has no place" in reasons["sft/sft.jsonl:6"]
    assert "inside the text of a 'pretrain' turn" in reasons["sft/sft.jsonl:8"]
    assert reasons["mpo/mpo.jsonl:3"] == "rejected is missing"
    assert len(reasons) == 3


def test_pairs_of_mpo_keep_both_answers_and_the_truth(internvl):
    imported = import_all(internvl)
    row = the_row(imported, "mpo/mpo.jsonl:1")
    assert (row["chosen"], row["rejected"], row["answers"]) == ("Thus.", "No.", ["12"])
    assert exchange(row) == [("user", "<image>\nWhy?"), ("assistant", "Thus.")]
    assert exchange(the_row(imported, "mpo/mpo.jsonl:2"))[0] == ("system", "Think.")


def test_what_a_set_says_about_training_is_noted(internvl):
    notes = import_all(internvl).importer.facts["source"]["notes"]
    assert notes["sets"] == {
        "sft": {"data_augment": True, "repeat_time": 1},
        "mpo": {"data_augment": False, "repeat_time": 1},
    }


def test_repeat_time_above_one_repeats_and_below_one_leaves_a_share_out(tmp_path):
    lines = [{"id": f"{index:03d}", "conversations": says(f"{index}?", "Yes.")} for index in range(200)]
    write_jsonl(tmp_path / "a.jsonl", lines)
    for repeat, expected in ((3, 600), (0.25, 50), (1.5, 300)):
        (tmp_path / "meta.json").write_text(json.dumps({"a": {"annotation": "a.jsonl", "repeat_time": repeat}}))
        imported = import_all(tmp_path, heldout_share=0.05)
        counts = imported.importer.counts
        assert counts["records"] + counts["repeated"] == len(imported.rows) + len(imported.rejects)
        assert len(imported.rows) == pytest.approx(expected, rel=0.25)
        assert len({row["id"] for row in imported.rows}) == len(imported.rows)
        assert len(imported.heldout) == len({row["id"].split("#")[0] for row in imported.heldout}), (
            "repeats are held out"
        )


def test_a_process_reward_conversation_gives_labelled_steps(tmp_path):
    turns = says("<image>\nSolve.\nStep 1", "+", "Step 2", "-")
    write_images(tmp_path, 1)
    other = {"id": "chat", "conversations": says("Plus or minus?", "+", "Sure?", "Yes.")}
    write_jsonl(tmp_path / "prm.jsonl", [{"id": "p", "image": "0.png", "conversations": turns}, other])
    imported = import_all(tmp_path)
    row = the_row(imported, "p")
    assert row["steps"] == [{"text": "<image>\nSolve.\nStep 1", "label": 1.0}, {"text": "Step 2", "label": 0.0}]
    assert [content for _, content in exchange(row)] == [turn["value"] for turn in turns]
    assert the_row(imported, "chat")["steps"] is None


def test_a_set_outside_the_source_is_refused_by_name(tmp_path):
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "out.jsonl", [])
    for changes in ({"annotation": "../out.jsonl"}, {"root": ".."}, {"root": "/etc"}, {"repeat_time": -1}):
        described = {"annotation": "in.jsonl"} | changes
        write_jsonl(tmp_path / "in" / "in.jsonl", [{"conversations": says("a", "b")}])
        (tmp_path / "in" / "meta.json").write_text(json.dumps({"far": described}))
        with pytest.raises(InputError, match=r"outside|repeat_time"):
            import_all(tmp_path / "in")


def test_rl_queries_have_the_truth_as_their_answer(tmp_path):
    (tmp_path / "MMPR-Tiny/images").mkdir(parents=True)
    (tmp_path / "MMPR-Tiny/images/0.png").write_bytes(png(1))
    rows = [
        {
            "images": [{"path": "MMPR-Tiny/images/0.png", "bytes": None}],
            "prompt": [{"role": "system", "content": "Box it."}, {"role": "user", "content": "<image>\nArea?"}],
            "extra_info": {"question": "Area?"},
            "reward_model": {"ground_truth": "12"},
            "data_source": "geometry",
        },
        {
            "images": [{"path": None, "bytes": png(2)}],
            "prompt": None,
            "extra_info": {"question": "Side?"},
            "reward_model": {"ground_truth": "3"},
            "data_source": "geometry",
        },
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mmpr_tiny.parquet")
    imported = import_all(tmp_path)
    assert imported.importer.found == "internvl_rl (mmpr_tiny.parquet)"
    first, second = imported.rows
    assert exchange(first) == [("system", "Box it."), ("user", "<image>\nArea?"), ("assistant", "12")]
    assert exchange(second) == [("user", "<image>\nSide?"), ("assistant", "3")]
    assert (first["answers"], first["task"]) == (["12"], "geometry")
    assert second["media"][0]["bytes"] == png(2)


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


# Who is held out, and what rows are called


def test_the_same_source_gives_the_same_split_and_all_rows_about_an_image_one_side(tmp_path):
    names = write_images(tmp_path, 40)
    table = [[name, f"{number}?", f"{number}"] for name in names for number in range(3)]
    write_csv(tmp_path / "q.csv", [["image", "question", "answer"], *table])
    one, two = (import_all(tmp_path, heldout_share=0.3) for _ in range(2))
    assert one.train == two.train and one.heldout == two.heldout
    shown = [{row["media"][0]["sha256"] for row in rows} for rows in (one.train, one.heldout)]
    assert shown[0].isdisjoint(shown[1])
    assert len(shown[1]) == pytest.approx(12, abs=6)
    other = import_all(tmp_path, heldout_share=0.3, seed=1)
    assert {row["id"] for row in other.heldout} != {row["id"] for row in one.heldout}


def test_two_spellings_of_a_path_are_one_image(tmp_path):
    names = write_images(tmp_path / "img", 20)
    table = [[f"{before}img/{name}", f"{before}?", "yes"] for name in names for before in ("", "./", "img/../")]
    write_csv(tmp_path / "q.csv", [["image", "question", "answer"], *table])
    imported = import_all(tmp_path, heldout_share=0.4)
    shown = [{row["media"][0]["sha256"] for row in rows} for rows in (imported.train, imported.heldout)]
    assert len(imported.rows) == 60 and shown[0].isdisjoint(shown[1])


def test_a_small_source_has_one_held_out_row(tmp_path):
    imported = import_all(questions_csv(tmp_path, 3), heldout_share=0.0001)
    assert (len(imported.train), len(imported.heldout)) == (2, 1)


def test_a_share_of_the_training_rows_may_pre_train(tmp_path):
    imported = import_all(questions_csv(tmp_path, 200), pretrain_share=0.4)
    share = sum(row["task"] == "pretrain" for row in imported.train) / len(imported.train)
    assert share == pytest.approx(0.4, abs=0.1)
    assert {row["task"] for row in imported.heldout} == {"answer"}


def test_an_id_that_is_taken_gets_its_place_and_no_row_is_lost(tmp_path):
    lines = [{"id": "same", "conversations": says(f"{index}", "yes")} for index in range(4)]
    write_jsonl(tmp_path / "a.jsonl", lines)
    imported = import_all(tmp_path)
    assert len({row["id"] for row in imported.rows}) == 4
    assert all(row["id"].startswith("same") for row in imported.rows)


def test_ids_are_told_apart_however_many_there_are():
    ids = Ids()
    rng = np.random.default_rng(0)
    names = [str(number) for number in rng.integers(0, 90_000, 120_000)]
    seen: set[str] = set()
    for name in names:
        assert ids.take(name) == (name not in seen)
        seen.add(name)


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
