r"""Where the answer stands in what a model wrote: after its thoughts, and in its last ``\boxed{}``.

Models that think write ``<think>...</think>`` first and put the final answer into ``\boxed{}`` (InternVL3.5's R1
prompt and rule-based rewards). Evaluation, preference data and rewards all read answers in this way, so that they agree
on what was answered. Every function takes time linear in the text: no pattern here can go back, none recurses.
"""

import re

THINK_START, THINK_END = "<think>", "</think>"

_TAG = re.compile(r"</?think>")
# Escaped braces ("\{") are LaTeX's own and enclose nothing; "\\" is taken as a pair, so that "\\{" opens a group.
_BRACE = re.compile(r"\\boxed\s*\{|\\[\\{}]|[{}]")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{")
_ESCAPED = re.compile(r"\\([%$&#_])")


def extract_boxed(text: str) -> str | None:
    r"""What the last complete ``\boxed{}`` of ``text`` holds, or None where there is none.

    Braces nest, escaped ones do not count. "Last" is the one that begins last: of ``\boxed{\boxed{8}}`` it is "8". A
    box that is never closed is none.
    """
    last = (-1, -1)
    open_groups: list[int] = []
    for match in _BRACE.finditer(text):
        token = match.group()
        if token == "{":
            open_groups.append(-1)
        elif token == "}":
            if open_groups and (start := open_groups.pop()) > last[0]:
                last = (start, match.start())
        elif token.startswith("\\b"):
            open_groups.append(match.end())
    return None if last[0] < 0 else text[last[0] : last[1]]


def without_thoughts(text: str) -> list[str]:
    """The pieces of ``text`` outside its thoughts, in order, at least one: the last is what follows the last thought.

    A thought that is never closed goes on to the end: then the last piece is what stands before it. A ``</think>`` that
    nothing opened ends a thought that began before the text (the prompt may have opened it).
    """
    pieces, start, thinking = [], 0, False
    for match in _TAG.finditer(text):
        closes = match.group() == THINK_END
        if closes and not thinking:
            pieces.clear()
        elif not closes and not thinking:
            pieces.append(text[start : match.start()])
        start, thinking = match.end(), not closes
    return pieces if thinking else [*pieces, text[start:]]


def final_answer(text: str) -> str:
    r"""The answer in ``text``: what the last ``\boxed{}`` outside the thoughts holds, else what follows the last
    thought, else the whole text, unchanged.

    A box loses LaTeX that only wraps it: ``\boxed{\text{yes}}`` is "yes", ``\boxed{$8$}`` is "8", ``\boxed{12\%}`` is
    "12%". A text that ends inside its first thought answers nothing: "".
    """
    boxed = boxed_answer(text)
    return answer_text(text) if boxed is None else unwrapped(boxed)


def answer_text(text: str) -> str:
    """What follows the last thought, without white space around it; a text without thoughts unchanged."""
    last = without_thoughts(text)[-1]
    return last if last == text else last.strip()


def boxed_answer(text: str) -> str | None:
    """What the last box outside the thoughts holds, as written; None where there is none."""
    boxes = (extract_boxed(piece) for piece in reversed(without_thoughts(text)))
    return next((box for box in boxes if box is not None), None)


def unwrapped(boxed: str) -> str:
    r"""The plain text of a box: without ``$`` or one command such as ``\text{}`` around all of it; ``\%`` is %."""
    plain = boxed.strip()
    if len(plain) > 1 and plain[0] == plain[-1] == "$":
        plain = plain.strip("$").strip()
    command = _TEXT_COMMAND.match(plain)
    # The command's group must be the only one: "\text{a} or \text{b}" is wrapped in none.
    if command and plain.endswith("}") and not {"{", "}"} & set(plain[command.end() : -1]):
        plain = plain[command.end() : -1].strip()
    return _ESCAPED.sub(r"\1", plain)


def has_format(text: str) -> bool:
    r"""Whether ``text`` is one thought and then an answer in a box: exactly one ``<think>``, at the beginning, exactly
    one ``</think>``, and after it a complete ``\boxed{}`` (InternVL3.5's rule for online RL)."""
    if not text.startswith(THINK_START) or text.count(THINK_START) != 1 or text.count(THINK_END) != 1:
        return False
    return extract_boxed(text.partition(THINK_END)[2]) is not None


def format_reward(text: str) -> float:
    """1.0 for an answer that ``has_format``, else 0.0."""
    return float(has_format(text))
