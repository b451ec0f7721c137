"""Chat rendering: messages to text segments, in the ``internvl2_5`` (ChatML) template of all Qwen3 sizes."""

from collections.abc import Sequence
from typing import NamedTuple

from model.data.schema import TURN_END, TURN_START

# The same rendering for stock tools: a string, or a list of typed parts; an image stands on a line of its own.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\\n' + SYSTEM_PROMPT + '<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<IMG_CONTEXT>\\n' }}"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


class Segment(NamedTuple):
    """A piece of the rendered chat; ``trained`` marks the tokens that carry loss."""

    text: str
    trained: bool


def chat_template(system_prompt: str) -> str:
    """The Jinja template with the default system prompt written in."""
    return CHAT_TEMPLATE.replace("SYSTEM_PROMPT", "'" + system_prompt.replace("\\", "\\\\").replace("'", "\\'") + "'")


def render_chat(
    messages: Sequence[dict[str, str]], system_prompt: str | None, *, generate: bool = False
) -> list[Segment]:
    """Render messages to segments, after a turn with ``system_prompt`` (None for none) where they open with none.

    Only the assistant's text and its terminator are trained (InternVL3.5, section 2.3). With ``generate`` the
    text ends with an open assistant turn.
    """
    if system_prompt is not None and (not messages or messages[0]["role"] != "system"):
        messages = [{"role": "system", "content": system_prompt}, *messages]
    segments = []
    for message in messages:
        segments.append(Segment(f"{TURN_START}{message['role']}\n", False))
        trained = message["role"] == "assistant"
        segments.append(Segment(message["content"] + TURN_END, trained))
        segments.append(Segment("\n", False))
    if generate:
        segments.append(Segment(f"{TURN_START}assistant\n", False))
    return segments
