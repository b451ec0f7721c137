"""Importers on bad records: a text or medium that cannot be used costs its row, with the reason."""

import json
import os

import pytest

from model.data.errors import InputError
from tests.source_builders import csv_of, import_all, png, refused, says, video, write_csv, write_images, write_jsonl

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
