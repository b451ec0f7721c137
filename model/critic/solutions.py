r"""Solutions as steps, and the conversation in which a critic judges them. Imports no torch.

A solution is cut where a line is blank. The critic is given the question with the first step, answers "+" or "-", is
given the next step, answers again (VisualPRM, arXiv 2503.10291, section 3; its released data pipeline, from which
the prompts are taken word for word: released critics were trained with them).
"""

import re
from collections.abc import Sequence

from model.data.errors import InputError
from model.data.schema import Message, Row, Step, scorer

RIGHT, WRONG = "+", "-"
MAX_STEPS = 16
CRITIC_SYSTEM_PROMPT = """\
You are an advanced AI assistant, designed to serve as a process supervision model. In this task, I will provide a \
problem statement followed by the first step of the solution process. For each subsequent turn, I will give you a new \
step in the solution. Your role is to assess whether the solution process is correct up to the current step.

- In the **first round**, I will input the problem and the first step of the solution process.
- In **each subsequent round**, I will provide the next step in the solution.

For each step, you should:

- Respond with **"+"** if you believe the solution process is correct up to this step.
- Respond with **"-"** if you detect any issues or errors in the process up to this step.

Please note:
- Only respond with **"+"** or **"-"**. Do not provide any additional explanations, comments, or justifications.

Your task is to verify the accuracy and correctness of each step in the given solution process."""

_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")


def step_ends(solution: str, max_steps: int = MAX_STEPS) -> list[int]:
    """Where each step of ``solution`` ends: indices just behind the blank lines after it; the last is its length.

    ``solution[:end]`` is the solution so far, as it was written. More than ``max_steps`` steps are joined to as many
    of about equal numbers of steps. A solution without text has no steps.
    """
    begin = len(solution) - len(solution.lstrip())
    ends = [match.end() for match in _BLANK_LINE.finditer(solution, begin) if match.end() < len(solution)]
    ends = [*ends, len(solution)] if solution.strip() else []
    if len(ends) <= max_steps:
        return ends
    return [ends[(number + 1) * len(ends) // max_steps - 1] for number in range(max_steps)]


def split_steps(solution: str, max_steps: int = MAX_STEPS) -> list[str]:
    """The texts of the steps, without white space around them."""
    ends = step_ends(solution, max_steps)
    return [solution[start:end].strip() for start, end in zip([0, *ends], ends, strict=False)]


def question_of(row: Row) -> str:
    """The one question of a row, its media's placeholders included.

    Raises:
        InputError: the row is a conversation of several questions.
    """
    questions = [message["content"] for message in row["messages"] if message["role"] == "user"]
    if len(questions) != 1:
        raise InputError(f"row {row['id']}: a critic judges answers to one question; this row has {len(questions)}")
    return questions[0]


def critic_messages(question: str, steps: Sequence[str], verdicts: Sequence[str]) -> list[Message]:
    """The conversation about a solution: a question and answer for each step, ``verdicts`` being the answers."""
    messages: list[Message] = [{"role": "system", "content": CRITIC_SYSTEM_PROMPT}]
    for number, (step, verdict) in enumerate(zip(steps, verdicts, strict=True)):
        asked = f"### Question:\n{question}\n\n### Solution Process:\n{step}" if number == 0 else step
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": verdict}]
    return messages


def critic_row(row: Row, name: str, steps: Sequence[Step], threshold: float = 0.0) -> Row:
    """A row to train a critic on: a solution of ``row``, every step with "+" where its label is above ``threshold``.

    Args:
        row: the question, with its media.
        name: of the solution; the new row's id is ``<row id>/<name>``.
        steps: of the solution, each labelled with the share of its continuations that were right.
        threshold: the published one is 0: a step is right when any continuation was.

    Raises:
        InputError: the row has several questions.
    """
    verdicts = [RIGHT if (step["label"] or 0.0) > threshold else WRONG for step in steps]
    messages = critic_messages(question_of(row), [step["text"] for step in steps], verdicts)
    return {
        **row,
        "id": f"{row['id']}/{name}",
        "messages": messages,
        "task": "critic",
        "answers": [verdicts[-1]],
        "scorer": scorer("exact"),
        "steps": list(steps),
    }
