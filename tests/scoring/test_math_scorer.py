"""Mathematical answers: equal in value, hostile ones at the cost of themselves."""

import pytest

from scoring.judge import Judges, Request
from scoring.score import Score, score_answer

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def judges():
    held = Judges(1, seconds=1)
    yield held
    held.close()


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        (r"<think>\frac{2}{4}</think>\boxed{\frac{1}{2}}", "0.5", True),
        ("The answer is 1/2.", r"\frac{1}{2}", True),
        (r"\boxed{2(x+1)}", "2x+2", True),
        (r"\boxed{x=3}", "3", True),
        (r"\boxed{\{2, 1\}}", r"\{1, 2\}", True),
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", True),
        (r"\boxed{2x+3}", "2x+2", False),
        (r"<think>\boxed{8}</think>\boxed{9}", "8", False),
        ("<think>it is 8", "8", False),
        (r"\boxed{8} or \boxed{9}", "8", False),
    ],
)
def test_expressions_are_right_when_their_values_are_equal(judges, prediction, reference, right):
    assert judges.ask([Request("math", "{}", prediction, [reference])])[0].value == float(right)


@pytest.mark.parametrize("expression", ["9**9**9**9", "9^{9^{9^{9}}}"])
def test_a_hostile_expression_is_wrong_and_costs_one_answer(judges, expression):
    asked = [Request("math", "{}", rf"\boxed{{{text}}}", ["8"]) for text in ("8", expression, "8")]
    first, hostile, last = judges.ask(asked)
    assert (first.value, hostile.value, last.value) == (1.0, 0.0, 1.0)


def test_an_answer_without_an_expression_or_too_long_for_one_is_unparsed():
    assert score_answer("math", "{}", "", ["8"]) == Score(0.0, parsed=False)
    assert score_answer("math", "{}", rf"\boxed{{{'1+' * 3000}1}}", ["8"]) == Score(0.0, parsed=False)


@pytest.mark.parametrize(
    ("parameters", "references", "reason"),
    [
        ("{}", [""], "cannot read the reference"),
        ('{"tolerance": 1}', ["8"], "math has none"),
        ("{}", [], "no reference"),
    ],
)
def test_a_fault_of_a_mathematical_row_is_an_error(parameters, references, reason):
    with pytest.raises(ValueError, match=reason):
        score_answer("math", parameters, "8", references)
