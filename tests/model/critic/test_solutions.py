"""Solutions as steps, and the conversations of a critic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.critic.solutions import critic_messages, critic_row, question_of, split_steps, step_ends
from model.data.errors import InputError
from model.data.schema import check_row
from tests.tiny import picture, question_row


@pytest.mark.parametrize(
    ("solution", "steps"),
    [
        ("one step", ["one step"]),
        ("a\nb\n\nc", ["a\nb", "c"]),
        ("a\n\n\n\nb\n \t\nc\n\n", ["a", "b", "c"]),
        ("\n\n  a\n\nb", ["a", "b"]),
        ("<think>\na\n\nb\n</think>\n\n\\boxed{8}", ["<think>\na", "b\n</think>", "\\boxed{8}"]),
        ("", []),
        (" \n\n ", []),
    ],
)
def test_a_step_ends_at_a_blank_line(solution, steps):
    assert split_steps(solution) == steps


def test_more_steps_than_a_critic_takes_are_joined_evenly():
    steps = split_steps("\n\n".join(map(str, range(40))), max_steps=16)
    assert len(steps) == 16
    assert [len(step.split()) for step in steps].count(2) + [len(step.split()) for step in steps].count(3) == 16
    assert " ".join(steps).split() == list(map(str, range(40)))


@given(st.text(alphabet="ab \n\t", max_size=60), st.integers(1, 5))
def test_steps_hold_all_the_text_and_ends_rise(solution, max_steps):
    ends = step_ends(solution, max_steps)
    assert ends == sorted(set(ends)) and len(ends) <= max_steps
    assert bool(ends) == bool(solution.strip())
    steps = split_steps(solution, max_steps)
    assert all(steps) and len(steps) == len(ends)
    assert "".join("".join(steps).split()) == "".join(solution.split())


def test_the_conversation_is_the_published_one():
    system, first, verdict, second, last = critic_messages("<image>\nHow many?", ["I see 3.", "So 3."], ["+", "-"])
    assert system["content"].startswith("You are an advanced AI assistant, designed to serve as a process supervision")
    assert system["content"].endswith("the accuracy and correctness of each step in the given solution process.")
    assert first["content"] == "### Question:\n<image>\nHow many?\n\n### Solution Process:\nI see 3."
    assert [message["role"] for message in (system, first, verdict, second, last)] == [
        "system",
        *("user", "assistant") * 2,
    ]
    assert (verdict["content"], second["content"], last["content"]) == ("+", "So 3.", "-")


def test_a_critics_row_has_a_verdict_for_every_label_above_the_threshold(rng):
    row = question_row("r1", [picture(rng)], "3", question="How many?")
    steps = [{"text": "I see 3.", "label": 0.25}, {"text": "So 4.", "label": 0.0}]
    new = critic_row(row, "solution-0", steps)
    assert check_row(new) is None
    assert (new["id"], new["answers"], new["steps"]) == ("r1/solution-0", ["-"], steps)
    assert [message["content"] for message in new["messages"] if message["role"] == "assistant"] == ["+", "-"]
    stricter = critic_row(row, "solution-0", steps, threshold=0.5)
    assert [message["content"] for message in stricter["messages"][2::2]] == ["-", "-"]


def test_a_row_of_several_questions_has_no_one_question(rng):
    row = question_row("r1", [picture(rng)], "3")
    row["messages"] = [*row["messages"], {"role": "user", "content": "And?"}, {"role": "assistant", "content": "4"}]
    with pytest.raises(InputError, match=r"row r1: a critic judges answers to one question; this row has 2"):
        question_of(row)
