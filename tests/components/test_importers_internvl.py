"""The importer of InternVL: sets of a meta-json, pairs of MPO, process rewards, RL queries."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.data.errors import InputError
from tests.source_builders import exchange, import_all, png, says, the_row, video, write_images, write_jsonl


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
