r"""Deep thinking: the prompts that make InternVL3.5 think before it answers, or not. Imports no torch.

The prompt is the published one (InternVL3.5's model card, its training and evaluation code), word for word: the model
was trained with it. It takes the place of the default system turn, in both templates: GPT-OSS's own switch
("Reasoning: high" in harmony's default system text) was left out of the published training.
"""

from collections.abc import Sequence

from model.data.schema import Message, Row

THINKING_SYSTEM_PROMPT = """\
You are an AI assistant that rigorously follows this response protocol:

1. First, conduct a detailed analysis of the question. Consider different angles, potential solutions, and reason \
through the problem step-by-step. Enclose this entire thinking process within <think> and </think> tags.

2. After the thinking section, provide a clear, concise, and direct answer to the user's question. Separate the answer \
from the think section with a newline.

Ensure that the thinking process is thorough but remains focused on the query. The final answer should be standalone \
and not reference the thinking section."""
BOXED_INSTRUCTION = r"Please answer the question and put the final answer within \boxed{}."
"""On a line of its own after a question, where a scorer will look for the box (the published evaluation)."""
THINKING_TEMPERATURE, THINKING_TOP_P = 0.6, 0.95
"""How thoughts are sampled: greedy decoding repeats itself (the model card; the published evaluation)."""
NO_THINKING_PREFIX = "<think>\n</think>\n"
"""Beginning of the answer of a model that thinks although nobody asked it to: a thought that is over."""


def thinking_messages(messages: Sequence[Message], *, boxed: bool = False) -> list[Message]:
    """The conversation with the thinking prompt as its system turn, before what a system turn of its own says.

    Args:
        messages: with or without a system turn.
        boxed: also ask for a boxed answer, after the last question.
    """
    system, rest = THINKING_SYSTEM_PROMPT, list(messages)
    if rest and rest[0]["role"] == "system":
        system = f"{system}\n\n{rest.pop(0)['content']}"
    if boxed:
        last = max(index for index, message in enumerate(rest) if message["role"] == "user")
        rest[last] = {"role": "user", "content": f"{rest[last]['content']}\n{BOXED_INSTRUCTION}"}
    return [{"role": "system", "content": system}, *rest]


def thinking_row(row: Row, *, boxed: bool = False) -> Row:
    """The row with ``thinking_messages``."""
    return {**row, "messages": thinking_messages(row["messages"], boxed=boxed)}
