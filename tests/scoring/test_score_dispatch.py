"""Rows name their scorer: dispatch, parameters, unreadable answers, constant baselines."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.score import Score, best_constant, score_answer


def row(task, name, *answers, **parameters):
    return {"task": task, "answers": list(answers), "scorer": {"name": name, "parameters": json.dumps(parameters)}}


@pytest.mark.parametrize(
    ("name", "parameters", "prediction", "answers", "score"),
    [
        ("exact", "", " 1 2 3", ["1 2 3"], Score(1.0)),
        ("exact", "{}", "1 2", ["1 2 3"], Score(0.0)),
        ("numeric", "{}", "there are 4", ["4"], Score(1.0)),
        ("numeric", "{}", "5", ["4"], Score(0.0)),
        ("numeric", '{"tolerance": 1}', "5", ["4"], Score(1.0)),
        ("numeric", "{}", "four", ["4"], Score(0.0, parsed=False)),
        ("anls", "{}", "ab", ["ax"], Score(0.5)),
        ("anls", '{"threshold": 0.6}', "ab", ["ax"], Score(0.0)),
        ("relaxed", "{}", "102", ["90", "100"], Score(1.0)),
        ("relaxed", '{"tolerance": 0.01}', "102", ["100"], Score(0.0)),
        ("box_iou", '{"threshold": 0.5}', "0 0 10 5", ["0 0 10 10"], Score(1.0)),
        ("box_iou", '{"threshold": 0.6}', "0 0 10 5", ["0 0 10 10"], Score(0.0)),
        ("box_iou", "{}", "top left", ["0 0 10 10"], Score(0.0, parsed=False)),
        ("point_in_box", "{}", "5 5", ["0 0 10 10"], Score(1.0)),
        ("point_in_box", "{}", "5 11", ["0 0 10 10"], Score(0.0)),
        ("exact", '{"after": ":"}', "7 > 3: larger", ["larger"], Score(1.0)),
        ("exact", '{"after": ":"}', "larger", ["larger"], Score(1.0)),
        ("exact", '{"after": ":"}', "larger: no", ["larger"], Score(0.0)),
        ("exact", "{}", "7 > 3: larger", ["larger"], Score(0.0)),
        ("numeric", '{"after": "="}', "3 + 7 = 10", ["10"], Score(1.0)),
        ("numeric", '{"after": "="}', "3 + 7 + 1 = 10 + 1 = 11", ["11"], Score(1.0)),
        ("numeric", '{"after": "="}', "10", ["10"], Score(1.0)),
        ("numeric", '{"after": "="}', "10 = 3 + 7", ["10"], Score(0.0, parsed=False)),
        ("numeric", '{"after": "="}', "3 + 7 =", ["10"], Score(0.0, parsed=False)),
        ("numeric", '{"after": "=", "tolerance": 1}', "3 + 7 = 11", ["10"], Score(1.0)),
        ("multiple_choice", "{}", "Best answer: C", ["C"], Score(1.0)),
        ("multiple_choice", "{}", "A man walks. D", ["A"], Score(0.0)),
        ("multiple_choice", '{"options": ["x", "y", "z", "v", "w"]}', "E", ["E"], Score(1.0)),
        ("multiple_choice", '{"letters": "AB"}', "C", ["A"], Score(0.0, parsed=False)),
        ("multiple_choice", "{}", "A or B", ["A"], Score(0.0, parsed=False)),
    ],
)
def test_an_answer_is_scored_by_the_scorer_its_row_names(name, parameters, prediction, answers, score):
    assert score_answer(name, parameters, prediction, answers) == score


@pytest.mark.parametrize(
    ("name", "parameters", "answers", "reason"),
    [
        ("bleu", "{}", ["x"], "unknown scorer 'bleu'"),
        ("exact", "{}", [], "no reference"),
        ("exact", '{"threshold": 0.5}', ["x"], "unknown key 'threshold'"),
        ("box_iou", "{", ["0 0 1 1"], "not JSON"),
        ("box_iou", "[]", ["0 0 1 1"], "not a JSON object"),
        ("box_iou", '{"threshold": 2}', ["0 0 1 1"], "unusable value 2"),
        ("box_iou", '{"threshold": true}', ["0 0 1 1"], "unusable value True"),
        ("numeric", '{"tolerance": NaN}', ["1"], "unusable value nan"),
        ("numeric", '{"tolerance": 1e999}', ["1"], "unusable value inf"),
        ("numeric", '{"tolerance": 1' + "0" * 400 + "}", ["1"], "unusable value 1000"),
        ("exact", "[" * 100_000, ["1"], "not JSON"),
        ("box_iou", "{}", ["left"], "cannot read the reference 'left'"),
        ("numeric", "{}", ["many"], "cannot read the reference 'many'"),
        ("multiple_choice", "{}", ["E"], "not one of the letters"),
        ("multiple_choice", '{"options": "xy"}', ["A"], "unusable value 'xy'"),
        ("numeric", '{"after": 3}', ["1"], "unusable value 3"),
        ("box_iou", '{"after": "="}', ["0 0 1 1"], "unknown key 'after'"),
        ("point_in_box", '{"threshold": 0.5}', ["0 0 1 1"], "unknown key 'threshold'"),
        ("point_in_box", "{}", ["left"], "cannot read the reference 'left'"),
    ],
)
def test_a_fault_of_the_row_is_an_error_not_a_score(name, parameters, answers, reason):
    with pytest.raises(ValueError, match=reason):
        score_answer(name, parameters, "x", answers)


@given(
    st.sampled_from(
        [
            ("exact", "7"),
            ("numeric", "7"),
            ("anls", "7"),
            ("relaxed", "7"),
            ("box_iou", "1 2 3 4"),
            ("multiple_choice", "B"),
        ]
    ),
    st.text(max_size=60),
)
def test_a_score_lies_between_0_and_1_and_an_unreadable_answer_is_wrong(case, prediction):
    name, answer = case
    score = score_answer(name, "{}", prediction, [answer])
    assert 0.0 <= score.value <= 1.0
    assert score.parsed or score.value == 0.0
    assert score_answer(name, "{}", answer, [answer]) == Score(1.0)


def test_the_best_constant_answer_is_the_most_frequent_reference_under_exact_match():
    rows = [row("read", "exact", answer) for answer in ("1", "2", "2", "3")]
    best = best_constant(rows)["read"]
    assert (best.answer, best.score) == ("2", 0.5)


def test_the_best_constant_answer_is_judged_by_the_rows_scorer_not_by_frequency():
    rows = [row("chart", "relaxed", answer) for answer in ("5", "5", "100", "102", "104")]
    best = best_constant(rows)["chart"]
    assert (best.answer, best.score) == ("100", 0.6)


def test_the_mean_box_may_be_the_best_constant_answer():
    corners = [(0, 0), (0, 40), (40, 0), (40, 40)]
    rows = [row("locate", "box_iou", f"{x} {y} {x + 200} {y + 200}", threshold=0.65) for x, y in corners]
    best = best_constant(rows)["locate"]
    assert (best.answer, best.score) == ("20 20 220 220", 1.0)


def test_the_mean_box_beats_references_and_median_that_miss_one():
    rows = [row("locate", "box_iou", f"{x} 0 {x + 200} 200", threshold=0.6) for x in (0, 0, 60)]
    best = best_constant(rows)["locate"]
    assert (best.answer, best.score) == ("20 0 220 200", 1.0)


def test_the_median_box_is_not_led_astray_by_an_outlier():
    corners = [(20, 0), (0, 20), (40, 20), (20, 40), (700, 700)]
    rows = [row("locate", "box_iou", f"{x} {y} {x + 200} {y + 200}", threshold=0.75) for x, y in corners]
    best = best_constant(rows)["locate"]
    assert (best.answer, best.score) == ("20 20 220 220", 0.8)


def test_each_family_has_its_own_constant_and_ties_go_to_the_first_seen():
    rows = [row("count", "numeric", "3"), row("read", "exact", "x"), row("count", "numeric", "4")]
    constants = best_constant(rows)
    assert {family: constant.answer for family, constant in constants.items()} == {"count": "3", "read": "x"}
