"""The harmony template of the GPT-OSS size: the published text, which tokens train, and what stock tools render."""

import pytest

from model.data.chat import chat_template, detect_template, end_of_turn, render_chat
from model.data.schema import RESERVED
from model.flash.processor import HARMONY_SYSTEM_PROMPT
from tests.tiny import byte_tokenizer, harmony_tokenizer

QUESTION = {"role": "user", "content": "<image>\nWhat is it?"}
ANSWER = {"role": "assistant", "content": "A digit."}

# InternVL3.5's template internvl3_5_gpt_oss, written out.
SYSTEM = (
    "<|start|>system<|message|>You are InternVL, a large language model trained by Shanghai AI Laboratory.\n"
    "Knowledge cutoff: 2024-06\nCurrent date: 2025-08-06\n\nReasoning: low\n\n"
    "# Valid channels: final. Channel must be included for every message.<|end|>"
)
TURN = "<|start|>user<|message|><image>\nWhat is it?<|end|><|start|>assistant<|channel|>final<|message|>"


def text(segments):
    return "".join(segment.text for segment in segments)


def trained(segments):
    return [segment.text for segment in segments if segment.trained]


def harmony(messages, **options):
    return render_chat(messages, HARMONY_SYSTEM_PROMPT, template="harmony", **options)


def test_a_conversation_reads_as_published():
    assert text(harmony([QUESTION, ANSWER])) == SYSTEM + TURN + "A digit.<|return|>"
    assert text(harmony([QUESTION], generate=True)) == SYSTEM + TURN


def test_only_the_final_channels_text_and_its_return_train():
    assert trained(harmony([QUESTION, ANSWER])) == ["A digit.<|return|>"]
    assert trained(harmony([QUESTION], generate=True)) == []


def test_earlier_answers_stand_in_the_history_and_end_without_loss():
    segments = harmony([QUESTION, ANSWER, QUESTION, ANSWER])
    assert text(segments) == SYSTEM + TURN + "A digit.<|end|>" + TURN + "A digit.<|return|>"
    assert trained(segments) == ["A digit.", "A digit.<|return|>"]


def test_a_system_message_replaces_the_default():
    system = {"role": "system", "content": "Be brief."}
    assert text(harmony([system, QUESTION, ANSWER])).startswith(
        "<|start|>system<|message|>Be brief.<|end|><|start|>user"
    )


@pytest.mark.parametrize("template", ["chatml", "harmony"])
@pytest.mark.parametrize("prompt", [HARMONY_SYSTEM_PROMPT, "It's a \\ test.\nLine two."])
@pytest.mark.parametrize("turns", [1, 2])
def test_stock_tools_render_the_saved_template_the_same(template, prompt, turns):
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [QUESTION, ANSWER] * turns
    for given, generate in ((messages, False), (messages[:-1], True)):
        stock = [message | {"content": message["content"].replace("<image>", "<IMG_CONTEXT>")} for message in given]
        rendered, _ = render_jinja_template(
            [stock], chat_template=chat_template(prompt, template), add_generation_prompt=generate
        )
        ours = text(render_chat(given, prompt, generate=generate, template=template))
        assert rendered == [ours.replace("<image>", "<IMG_CONTEXT>")]


def test_the_tokenizer_tells_which_template_it_is_for():
    assert (detect_template(byte_tokenizer()), end_of_turn("chatml")) == ("chatml", "<|im_end|>")
    assert (detect_template(harmony_tokenizer()), end_of_turn("harmony")) == ("harmony", "<|return|>")


def test_a_text_cannot_forge_a_turn_of_either_template():
    assert {"<|im_start|>", "<|im_end|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"} <= set(
        RESERVED
    )
