"""The thinking prompt, and where it stands in both templates."""

from hashlib import sha256

import pytest

from model.data.chat import render_chat
from model.data.schema import check_row
from model.data.thinking import (
    BOXED_INSTRUCTION,
    NO_THINKING_PREFIX,
    THINKING_SYSTEM_PROMPT,
    thinking_messages,
    thinking_row,
)
from tests.tiny import question_row

ASKED = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "8"}]


def test_the_prompt_is_the_published_one_word_for_word():
    paragraphs = THINKING_SYSTEM_PROMPT.split("\n\n")
    assert [paragraph.split(" ", 2)[0] for paragraph in paragraphs] == ["You", "1.", "2.", "Ensure"]
    assert all("\n" not in paragraph and "  " not in paragraph for paragraph in paragraphs)
    # SHA-256 of the text on the published model card.
    published = "a2cb9e8de918a3e379ee49845f6ebc851d6f449b4d88f6523d2b49edae502101"
    assert sha256(THINKING_SYSTEM_PROMPT.encode()).hexdigest() == published


@pytest.mark.parametrize(
    ("template", "system"),
    [
        ("chatml", f"<|im_start|>system\n{THINKING_SYSTEM_PROMPT}<|im_end|>"),
        ("harmony", f"<|start|>system<|message|>{THINKING_SYSTEM_PROMPT}<|end|>"),
    ],
)
def test_it_takes_the_place_of_the_default_system_turn(template, system):
    segments = render_chat(thinking_messages(ASKED), "the default", template=template)
    text = "".join(segment.text for segment in segments)
    assert system in text and "the default" not in text


def test_a_conversations_own_system_turn_follows_it():
    messages = thinking_messages([{"role": "system", "content": "Answer in French."}, *ASKED])
    assert messages[0] == {"role": "system", "content": f"{THINKING_SYSTEM_PROMPT}\n\nAnswer in French."}
    assert messages[1:] == ASKED


def test_the_box_is_asked_for_after_the_last_question():
    row = question_row("r1", [], "8", question="How many?")
    asked = thinking_row(row, boxed=True)
    assert check_row(asked) is None
    assert asked["messages"][1]["content"] == f"How many?\n{BOXED_INSTRUCTION}"
    assert row["messages"][0]["content"] == "How many?"


def test_a_thought_that_is_over_is_no_answer():
    from scoring.answer_format import final_answer, has_format

    assert final_answer(NO_THINKING_PREFIX + "8") == "8"
    assert has_format(NO_THINKING_PREFIX + r"\boxed{8}")
