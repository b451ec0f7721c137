"""Chat rendering: messages to text segments.

Two templates: ``chatml`` (the original layout's ``internvl2_5``) of all Qwen3 sizes, and ``harmony``
(``internvl3_5_gpt_oss``) of the GPT-OSS size.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from tokenizers import Tokenizer

from model.data.schema import (
    HARMONY_CHANNEL,
    HARMONY_END,
    HARMONY_MESSAGE,
    HARMONY_RETURN,
    HARMONY_START,
    TURN_END,
    TURN_START,
)

Template = Literal["chatml", "harmony"]

_FINAL = f"{HARMONY_CHANNEL}final"

# The same rendering for stock tools: a string, or a list of typed parts; an image stands on a line of its own.
_CONTENT = (
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<IMG_CONTEXT>\\n' }}"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
)
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\\n' + SYSTEM_PROMPT + '<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}" + _CONTENT + "{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
HARMONY_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|start|>system<|message|>' + SYSTEM_PROMPT + '<|end|>' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|start|>' + message['role'] }}"
    "{%- if message['role'] == 'assistant' -%}{{ '<|channel|>final' }}{%- endif -%}"
    "{{ '<|message|>' }}" + _CONTENT + "{%- if message['role'] == 'assistant' and loop.last -%}{{ '<|return|>' }}"
    "{%- else -%}{{ '<|end|>' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|start|>assistant<|channel|>final<|message|>' }}{%- endif -%}"
)


class Segment(NamedTuple):
    """A piece of the rendered chat; ``trained`` marks the tokens that carry loss."""

    text: str
    trained: bool


def detect_template(tokenizer: Tokenizer) -> Template:
    """The template whose special tokens the tokenizer has: harmony's, or else ChatML's."""
    return "chatml" if tokenizer.token_to_id(HARMONY_CHANNEL) is None else "harmony"


def end_of_turn(template: Template) -> str:
    """The token that ends an answer."""
    return HARMONY_RETURN if template == "harmony" else TURN_END


def chat_template(system_prompt: str, template: Template = "chatml") -> str:
    """The Jinja template with the default system prompt written in."""
    text = HARMONY_TEMPLATE if template == "harmony" else CHAT_TEMPLATE
    quoted = system_prompt.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return text.replace("SYSTEM_PROMPT", f"'{quoted}'")


def render_chat(
    messages: Sequence[dict[str, str]],
    system_prompt: str | None,
    *,
    generate: bool = False,
    template: Template = "chatml",
) -> list[Segment]:
    """Render messages to segments, after a turn with ``system_prompt`` (None for none) where they open with none.

    Only the assistant's text and its terminator are trained (InternVL3.5, section 2.3). With ``generate`` the
    text ends with an open assistant turn.
    """
    if system_prompt is not None and (not messages or messages[0]["role"] != "system"):
        messages = [{"role": "system", "content": system_prompt}, *messages]
    return _harmony(messages, generate) if template == "harmony" else _chatml(messages, generate)


def _chatml(messages: Sequence[dict[str, str]], generate: bool) -> list[Segment]:
    segments = []
    for message in messages:
        segments.append(Segment(f"{TURN_START}{message['role']}\n", False))
        trained = message["role"] == "assistant"
        segments.append(Segment(message["content"] + TURN_END, trained))
        segments.append(Segment("\n", False))
    if generate:
        segments.append(Segment(f"{TURN_START}assistant\n", False))
    return segments


def _harmony(messages: Sequence[dict[str, str]], generate: bool) -> list[Segment]:
    """Every answer goes to the channel ``final``. Its text is trained, and so is the ``<|return|>`` of the last one.

    Earlier answers stand in the history, where harmony ends them with ``<|end|>``: no answer ever ends so, and it
    carries no loss.
    """
    segments = []
    for number, message in enumerate(messages, start=1):
        start, content = f"{HARMONY_START}{message['role']}", message["content"]
        if message["role"] != "assistant":
            segments.append(Segment(f"{start}{HARMONY_MESSAGE}{content}{HARMONY_END}", False))
            continue
        segments.append(Segment(f"{start}{_FINAL}{HARMONY_MESSAGE}", False))
        if number == len(messages) and not generate:
            segments.append(Segment(content + HARMONY_RETURN, True))
        else:
            segments += [Segment(content, True), Segment(HARMONY_END, False)]
    if generate:
        segments.append(Segment(f"{HARMONY_START}assistant{_FINAL}{HARMONY_MESSAGE}", False))
    return segments
