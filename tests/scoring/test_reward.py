"""The reward of an answer: right, well-formed, not too long; and what a broken scorer costs."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.reward import Answered, Reward, RewardOutcome, RewardRule, failures, reward_report

GOOD = r"<think>3 + 5</think>\boxed{8}"


@pytest.fixture(scope="module")
def reward():
    held = Reward(RewardRule(), seconds=0.5)
    yield held
    held.close()


def answered(text: str, **changed) -> Answered:
    return dataclasses.replace(Answered("numeric", "{}", ["8"], text, tokens=10), **changed)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (GOOD, 1.0),
        ("8", 0.9),
        (r"<think>3 + 5</think>\boxed{9}", 0.1),
        ("9", 0.0),
        ("", 0.0),
        ("<think>it is 8", 0.0),
        ("<think>" + "so it is 8 " * 9_000, 0.0),
        ("\\boxed{" * 50_000, 0.0),
    ],
)
def test_the_published_weights_give_nine_tenths_to_right_and_one_to_the_format(reward, text, value):
    assert reward([answered(text)])[0].value == pytest.approx(value)


def test_an_answer_is_right_above_nine_tenths_of_its_scorers_score(reward):
    near, nearer = answered("abcdefgx", scorer="anls", references=["abcdefgh"]), answered("a" * 19 + "x", scorer="anls")
    outcomes = reward([near, dataclasses.replace(nearer, references=["a" * 20])])
    assert [(outcome.score, outcome.right) for outcome in outcomes] == [(0.875, False), (0.95, True)]


def test_a_cut_answer_earns_nothing_and_says_what_it_would_have_scored(reward):
    assert reward([answered(GOOD, cut=True)]) == [RewardOutcome(0.0, False, False, score=1.0, cut=True)]


def test_a_row_that_cannot_be_scored_costs_its_answers_and_is_named(reward):
    outcomes = reward([answered(GOOD, references=["many"]), answered(GOOD, scorer="bleu"), answered(GOOD)])
    assert [outcome.value for outcome in outcomes] == [0.0, 0.0, 1.0]
    assert outcomes[0].failed == "the row's scorer: numeric: cannot read the reference 'many'"
    assert failures(outcomes) == {outcomes[0].failed: 1, "the row's scorer: unknown scorer 'bleu'": 1}
    assert reward_report(outcomes) == pytest.approx(
        {"reward": 1 / 3, "right": 1 / 3, "well_formed": 1.0, "cut": 0.0, "failed": 2 / 3}
    )


def test_a_report_on_no_answers_is_all_zero():
    assert set(reward_report([]).values()) == {0.0}


def dapo(tokens: int, longest: int, cache: int) -> float:
    """Equation 13 of DAPO (arXiv 2503.14476)."""
    if tokens <= longest - cache:
        return 0.0
    return ((longest - cache) - tokens) / cache if tokens <= longest else -1.0


@given(st.integers(0, 200))
def test_the_length_penalty_is_the_soft_overlong_punishment(tokens):
    rule = RewardRule(soft_length=60, max_length=100, length_penalty=1.0)
    assert -rule.penalty(tokens, cut=False) == pytest.approx(dapo(tokens, 100, 40))


def test_without_a_soft_length_length_costs_nothing():
    assert RewardRule().penalty(10**6, cut=True) == 0.0
    assert RewardRule(soft_length=60, max_length=100).penalty(60, cut=True) == 0.5


@pytest.mark.parametrize("limits", [{"soft_length": 100, "max_length": 100}, {"soft_length": 5}])
def test_a_soft_length_is_below_the_longest(limits):
    with pytest.raises(ValueError, match="must be below max_length"):
        RewardRule(**limits)
