"""What holds for every family of the embedded corpus: valid rows, right answers, their own random streams, sizes."""

import json
import re

import pytest
from pydantic import ValidationError

from components.collect.config import CollectConfig, DigitsConfig
from components.collect.embedded import rows as rows_module
from components.collect.embedded.config import EmbeddedConfig
from components.collect.embedded.rows import FAMILIES, NOISY, embedded_counts, embedded_rows
from components.collect.step import run
from model.data.errors import InputError
from model.data.schema import check_row
from model.data.shards import open_dataset
from model.data.video import row_media
from scoring.score import score_answer

ROWS = 12


def everything(rows=ROWS, seed=0, **changes):
    families = {name: {"rows": rows} | changes.get(name, {}) for name in FAMILIES}
    return EmbeddedConfig.model_validate({"seed": seed, "heldout": rows, **families})


@pytest.fixture(scope="module")
def corpus():
    return tuple(list(rows) for rows in embedded_rows(everything()))


def score(row, answer):
    return score_answer(row["scorer"]["name"], row["scorer"]["parameters"], answer, row["answers"]).value


def wrong_answers(row):
    """Answers of the right form that are not the row's: other rows' forms with another content."""
    answer = row["answers"][0]
    yield ""
    yield "banana"
    match row["scorer"]["name"]:
        case "numeric" | "relaxed":
            yield str(abs(float(answer)) * 1.5 + 2)
        case "box_iou" | "point_in_box":
            yield from ("000 000 001 001", "0 0")
        case "page_html":
            yield answer.replace("<p ", "<p hidden ").replace("</p>", "x</p>")
            yield re.sub(r'data-bbox="\d+', 'data-bbox="-900', answer)
            yield answer.replace("data-bbox", "data-box")
        case "anls":
            yield answer[:-1] + "#"
        case _:
            yield answer + "s"


def test_every_row_is_valid_and_its_media_can_be_decoded(corpus):
    for row in (*corpus[0], *corpus[1]):
        assert check_row(row) is None
        for medium, decoded in zip(row["media"], row_media(row), strict=True):
            shown = decoded.frames[0] if medium["kind"] == "video" else decoded
            assert shown.size == (medium["width"], medium["height"])


def test_reference_and_demonstration_get_full_marks_and_wrong_answers_do_not(corpus):
    for row in (*corpus[0], *corpus[1]):
        assert score(row, row["messages"][-1]["content"]) == 1.0
        assert all(score(row, answer) == 1.0 for answer in row["answers"])
        for wrong in wrong_answers(row):
            assert score(row, wrong) < 1.0, (row["task"], row["answers"], wrong)


def test_an_answer_of_another_row_of_the_task_is_right_only_where_it_says_the_same(corpus):
    by_task = {}
    for row in corpus[1]:
        by_task.setdefault(row["task"], []).append(row)
    for rows in by_task.values():
        scores = [score(rows[0], other["answers"][0]) for other in rows]
        assert scores[0] == 1.0
        assert min(scores) < 1.0, rows[0]["task"]


def test_rows_have_ids_of_their_own_and_the_sizes_that_were_asked_for(corpus):
    counts = embedded_counts(everything())
    for rows, expected in zip(corpus, counts, strict=True):
        found = {task: sum(row["task"] == task for row in rows) for task in expected}
        assert found == expected == dict.fromkeys(expected, ROWS)
    ids = [row["id"] for rows in corpus for row in rows]
    assert len(set(ids)) == len(ids)


def test_the_same_seed_gives_the_same_rows_and_another_seed_does_not(corpus):
    assert [list(rows) for rows in embedded_rows(everything())] == list(corpus)
    other = [list(rows) for rows in embedded_rows(everything(rows=2, seed=1))]
    firsts = [[row for row in rows if int(row["id"][-6:]) < 2] for rows in corpus]
    for ours, theirs in zip(firsts, other, strict=True):
        assert sum(one == two for one, two in zip(ours, theirs, strict=True)) == 0


@pytest.mark.parametrize("family", ["charts", "photos", "clips"])
def test_a_row_does_not_depend_on_other_rows_tasks_or_families(corpus, family):
    task = getattr(everything(), family).tasks[-1]
    alone = EmbeddedConfig.model_validate({"heldout": 2, family: {"rows": 3, "tasks": [task]}})
    for rows, whole, count in zip(embedded_rows(alone), corpus, (3, 2), strict=True):
        assert list(rows) == [row for row in whole if row["task"] == task][:count]


@pytest.mark.parametrize("family", ["arithmetic", "text_arithmetic"])
def test_demonstrations_come_in_two_styles_of_one_question_and_held_out_rows_are_direct(family):
    config = EmbeddedConfig.model_validate({"heldout": 20, family: {"rows": 60, "direct_share": 0.3}})
    train, heldout = (list(rows) for rows in embedded_rows(config))
    direct = [row for row in train if row["messages"][-1]["content"] == row["answers"][0]]
    written = [row for row in train if row not in direct]
    assert 0.15 < len(direct) / len(train) < 0.45
    for row in written:
        mark = json.loads(row["scorer"]["parameters"])["after"]
        working, _, final = row["messages"][-1]["content"].rpartition(mark)
        assert working.strip()
        assert final.strip() == row["answers"][0]
    assert all(row["messages"][-1]["content"] == row["answers"][0] for row in heldout)


@pytest.mark.parametrize("family", ["arithmetic", "text_arithmetic"])
def test_answers_that_think_first_or_stand_in_a_box_are_right_and_never_held_out(family):
    settings = {"rows": 60, "direct_share": 0.5, "thought_share": 0.5, "boxed_share": 0.5}
    train, heldout = (
        list(rows) for rows in embedded_rows(EmbeddedConfig.model_validate({"heldout": 20, family: settings}))
    )
    said = {row["id"]: row["messages"][-1]["content"] for row in train}
    thought = [row for row in train if said[row["id"]].startswith("<think>")]
    boxed = [row for row in train if said[row["id"]].startswith("\\boxed")]
    direct = [row for row in train if said[row["id"]] == row["answers"][0]]
    assert min(map(len, (thought, boxed, direct, train))) > len(train) / 8
    assert len(thought) + len(boxed) + len(direct) < len(train), "none is written out plainly"
    for row in thought:
        working, end, final = said[row["id"]].removeprefix("<think>").partition("</think>")
        assert working.split(json.loads(row["scorer"]["parameters"])["after"])[-1].strip() == row["answers"][0]
        assert (end, final) == ("</think>", f"\\boxed{{{row['answers'][0]}}}")
    assert all(score(row, said[row["id"]]) == 1.0 for row in train)
    assert all(row["messages"][-1]["content"] == row["answers"][0] for row in heldout)


@pytest.mark.parametrize("family", ["arithmetic", "text_arithmetic"])
def test_a_wrong_demonstration_that_thinks_first_is_wrong_in_its_box(family):
    settings = {"rows": 20, "direct_share": 0.0, "thought_share": 1.0, "noisy_share": 1.0}
    train, _ = embedded_rows(EmbeddedConfig.model_validate({"heldout": 1, family: settings}))
    for row in train:
        assert row["source"].endswith(NOISY)
        assert score(row, row["messages"][-1]["content"]) == 0.0
        assert row["messages"][-1]["content"].endswith("}")


@pytest.mark.parametrize("family", ["arithmetic", "text_arithmetic"])
@pytest.mark.parametrize("direct_share", [0.0, 1.0])
def test_noisy_demonstrations_are_wrong_marked_and_only_in_training(family, direct_share):
    settings = {"rows": 30, "noisy_share": 0.5, "direct_share": direct_share}
    train, heldout = (
        list(rows) for rows in embedded_rows(EmbeddedConfig.model_validate({"heldout": 30, family: settings}))
    )
    noisy = [row for row in train if row["source"].endswith(NOISY)]
    assert 0.3 < len(noisy) / len(train) < 0.7
    for row in train:
        assert score(row, row["messages"][-1]["content"]) == (0.0 if row in noisy else 1.0)
        assert score(row, row["answers"][0]) == 1.0
    assert not any(NOISY in row["source"] for row in heldout)
    assert all(score(row, row["messages"][-1]["content"]) == 1.0 for row in heldout)


def test_the_step_draws_digits_and_further_families_into_one_corpus(tmp_path, context):
    config = CollectConfig(
        digits=DigitsConfig(transcriptions=3, questions=2, heldout=1),
        embedded=EmbeddedConfig.model_validate(
            {"heldout": 2, "clips": {"rows": 2, "tasks": ["clip_count"]}, "text_arithmetic": {"rows": 4}}
        ),
    )
    outputs = {name: tmp_path / name for name in ("corpus", "heldout", "tokenizer")}
    result = run(config, **outputs, context=context)
    tasks = [row["task"] for row in open_dataset(tmp_path / "corpus").rows()]
    assert tasks == [
        *["transcribe"] * 3,
        *(task for task in ("read", "count", "maximum", "locate") for _ in range(2)),
        *(task for task in ("text_sum", "text_difference", "text_product") for _ in range(4)),
        *["clip_count"] * 2,
    ]
    assert result.numbers["corpus_rows"] == 25
    assert result.numbers["heldout_rows"] == 5 + 4 * 2
    alone = CollectConfig(embedded=config.embedded)
    outputs = {name: tmp_path / "alone" / name for name in outputs}
    assert run(alone, **outputs, context=context).numbers["corpus_rows"] == 14


@pytest.mark.parametrize("change", [{"seed": 1}, {"heldout_share": 0.3}])
def test_digits_and_further_families_hold_out_the_same_glyphs(change):
    with pytest.raises(ValidationError, match="one seed and one held-out share"):
        CollectConfig(
            digits=DigitsConfig(transcriptions=1, questions=1),
            embedded=EmbeddedConfig.model_validate({"arithmetic": {"rows": 1}, **change}),
        )


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({}, "name at least one family"),
        ({"arithmetic": {}}, "rows"),
        ({"arithmetic": {"rows": 0}}, "greater than or equal to 1"),
        ({"arithmetic": {"rows": 1, "tasks": []}}, "one or more different ones"),
        ({"arithmetic": {"rows": 1, "tasks": ["sum", "sum"]}}, "one or more different ones"),
        ({"arithmetic": {"rows": 1, "tasks": ["product"]}}, "sum"),
        ({"arithmetic": {"rows": 1, "canvas": {"digits": [1, 4]}}}, "must begin at 2"),
        ({"comparison": {"rows": 1, "canvas": {"digits": [1, 5]}}}, "do not fit"),
        ({"text_arithmetic": {"rows": 1, "digits": [3, 2]}}, "fewest"),
        ({"words": {"rows": 1, "length": [3, 12]}}, "at least 96 x 16"),
        ({"charts": {"rows": 1, "marks": [3, 9]}}, "48 pixels wide for each mark"),
        ({"charts": {"rows": 1, "heldout_tables": []}}, "must name some of airports"),
        ({"pages": {"rows": 1, "size": [340, 448]}}, "multiples of 28"),
        ({"pages": {"rows": 1, "heldout_layouts": ["form", "invoice", "letter", "receipt", "report"]}}, "not all"),
        ({"grounding": {"rows": 1, "objects": [2, 10]}}, "objects"),
        ({"photos": {"rows": 1, "heldout_photos": ["moon"]}}, "astronaut"),
        ({"screens": {"rows": 1, "size": [100, 100]}}, "between 320 x 220"),
        ({"clips": {"rows": 1, "events": [1, 5]}}, "two frames for each"),
        ({"clips": {"rows": 1, "canvas": 57}}, "even"),
        ({"heldout_share": 0.0, "words": {"rows": 1}}, "greater than 0"),
    ],
)
def test_a_family_that_cannot_be_drawn_is_refused_with_its_reason(wrong, problem):
    with pytest.raises(ValidationError, match=problem):
        EmbeddedConfig.model_validate(wrong)


def test_words_of_a_length_that_the_lexicon_lacks_are_an_error_that_names_the_key():
    config = EmbeddedConfig.model_validate({"words": {"rows": 1, "length": [20, 22], "size": [400, 56]}})
    with pytest.raises(InputError, match=r"collect\.embedded\.words\.length: no word has 20 to 22 letters"):
        list(embedded_rows(config)[0])


def test_a_task_that_never_finds_a_question_ends_with_its_name(monkeypatch):
    monkeypatch.setitem(rows_module.FAMILIES, "words", lambda *_, heldout: lambda task, rng: None)
    rows = embedded_rows(EmbeddedConfig.model_validate({"words": {"rows": 1}}))[0]
    with pytest.raises(InputError, match=r"collect\.embedded\.words: no row of task word can be drawn"):
        next(rows)


def test_a_wheel_that_is_not_installed_is_named(monkeypatch):
    from components.collect.embedded import fonts

    monkeypatch.setattr(fonts, "find_spec", lambda name: None)
    fonts.package_directory.cache_clear()
    with pytest.raises(InputError, match="the package vega_datasets is not installed"):
        fonts.package_directory("vega_datasets")


def test_a_contact_sheet_shows_every_row(corpus):
    from components.collect.embedded.contact_sheet import contact_sheet

    firsts = {row["task"]: row for row in reversed(corpus[0])}
    sheets = [contact_sheet([firsts[task]]) for task in ("sum", "text_sum", "photo_change", "clip_order")]
    heights = [sheet.height for sheet in sheets]
    assert len({sheet.width for sheet in sheets}) == 1
    assert len(set(heights)) == 4
    together = contact_sheet([firsts[task] for task in ("sum", "text_sum", "photo_change", "clip_order")])
    assert together.height == max(heights)
    assert together.crop((0, 0, 340, 150)).tobytes() == sheets[0].crop((0, 0, 340, 150)).tobytes()


def test_the_digits_say_seed_and_held_out_share_of_the_further_families_where_those_say_nothing():
    digits = {"transcriptions": 1, "questions": 1, "seed": 5, "heldout_glyph_share": 0.3}
    both = CollectConfig.model_validate({"digits": digits, "embedded": {"fine_print": {"rows": 1}}})
    assert (both.embedded.seed, both.embedded.heldout_share) == (5, 0.3)
    assert CollectConfig.model_validate_json(both.model_dump_json()) == both
    with pytest.raises(ValidationError, match="one seed and one held-out share"):
        CollectConfig.model_validate({"digits": digits, "embedded": {"seed": 0, "fine_print": {"rows": 1}}})
