"""Chat rendering against the template that stock tools use."""

from jinja2 import Environment

from model.data.chat import chat_template, render_chat

MESSAGES = [
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "Sure?"},
]


def by_template(messages, system="It's short.", **options):
    return Environment(autoescape=False).from_string(chat_template(system)).render(messages=messages, **options)


def test_rendering_equals_the_template():
    ours = "".join(segment.text for segment in render_chat(MESSAGES, "It's short.", generate=True))
    assert ours == by_template(MESSAGES, add_generation_prompt=True)
    assert ours.startswith("<|im_start|>system\nIt's short.<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n")
    assert ours.endswith("<|im_start|>assistant\n")


def test_a_given_system_message_replaces_the_default():
    messages = [{"role": "system", "content": "Other."}, *MESSAGES]
    ours = "".join(segment.text for segment in render_chat(messages, "It's short."))
    assert ours == by_template(messages)
    assert "short" not in ours


def test_typed_parts_put_an_image_on_its_own_line():
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    assert "<|im_start|>user\n<IMG_CONTEXT>\nWhat?<|im_end|>" in by_template(parts)


def test_only_assistant_turns_are_trained():
    segments = render_chat(MESSAGES, "s")
    assert [segment.text for segment in segments if segment.trained] == ["3<|im_end|>"]
