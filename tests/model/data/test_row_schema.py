"""What makes a row valid."""

import copy

import pytest

from model.data.schema import check_row, image_media, scorer

PIXEL = image_media(b"not looked at here", image_format="PNG", width=1, height=1)


def good_row():
    return {
        "id": "a",
        "source": "test",
        "license": "CC0-1.0",
        "media": [dict(PIXEL)],
        "messages": [
            {"role": "user", "content": "<image>\nWhat is this?"},
            {"role": "assistant", "content": "A pixel."},
        ],
        "task": "describe",
        "answers": ["A pixel."],
        "scorer": scorer("exact"),
    }


def changed(path, value):
    row = copy.deepcopy(good_row())
    place = row
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return row


def test_a_good_row_has_no_reason():
    assert check_row(good_row()) is None


def test_a_text_only_row_has_no_media():
    row = changed(["messages", 0, "content"], "What is a pixel?") | {"media": []}
    assert check_row(row) is None


def test_a_system_message_may_come_first():
    row = good_row()
    row["messages"].insert(0, {"role": "system", "content": "Be brief."})
    assert check_row(row) is None


def test_video_by_uri_with_a_hash_is_valid():
    clip = dict(PIXEL, kind="video", bytes=None, uri="clips/a.mp4", sha256="0" * 64, start=1.0, end=3.5, fps=2.0)
    row = changed(["messages", 0, "content"], "<video>\nWhat happens?") | {"media": [clip]}
    assert check_row(row) is None


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (changed(["messages", 0, "content"], "What is this?"), "0 <image> placeholders for 1 media"),
        (changed(["messages", 0, "content"], "<image><image>\nWhat?"), "2 <image> placeholders for 1 media"),
        (changed(["messages", 0, "content"], "<image><video>"), "1 <video> placeholders for 0 media"),
        (changed(["messages", 1, "content"], "An <image>"), "an answer holds the placeholder"),
        (changed(["messages", 1, "content"], "  "), "no answer"),
        (changed(["messages", 1, "role"], "user"), "no answer"),
        (changed(["messages"], []), "messages is missing or empty"),
        (changed(["messages", 0, "role"], "assistant"), "roles must be user and assistant in turn"),
        (changed(["messages", 0, "role"], "narrator"), "roles must be user and assistant in turn"),
        (changed(["messages", 0, "content"], None), "a message has no text content"),
        (changed(["messages", 0, "content"], "<image>\n<IMG_CONTEXT>?"), "reserved word <IMG_CONTEXT>"),
        (changed(["messages", 1, "content"], "No.<|im_end|>"), "reserved word <|im_end|>"),
        (changed(["answers"], []), "answers is missing or empty"),
        (changed(["answers"], "A pixel."), "answers is missing or empty"),
        (changed(["answers"], ["A pixel.", ""]), "an accepted answer is empty"),
        (changed(["scorer", "name"], "Exact Match"), "scorer.name"),
        (changed(["scorer", "parameters"], "{'threshold': 0.5}"), "scorer.parameters is not JSON"),
        (changed(["scorer", "parameters"], "[0.5]"), "scorer.parameters is not a JSON object"),
        (changed(["media", 0, "kind"], "audio"), "media[0]: kind must be image or video"),
        (changed(["media", 0, "bytes"], None), "media[0]: give either bytes or uri"),
        (changed(["media", 0, "uri"], "a.png"), "media[0]: give either bytes or uri"),
        (changed(["media", 0, "sha256"], "abc"), "media[0]: sha256 must be 64 hexadecimal digits"),
        (changed(["media"], [dict(PIXEL, bytes=None, uri="a.png", sha256=None)]), "a uri needs the sha256"),
        (changed(["media"], [dict(PIXEL, start=3.0, end=1.0)]), "0 <= start < end"),
        (changed(["media"], None), "media is missing"),
        (changed(["id"], ""), "id is missing or empty"),
        (changed(["license"], None), "license is missing or empty"),
        (changed(["chosen"], "A pixel."), "chosen and rejected come together"),
        (changed(["steps"], "one, two"), "steps must be a list"),
        (changed(["colour"], "red"), "unknown column 'colour'"),
    ],
)
def test_a_bad_row_has_a_reason_in_one_line(row, reason):
    found = check_row(row)
    assert found is not None
    assert reason in found
    assert "\n" not in found
