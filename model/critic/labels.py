"""Process labels by Monte Carlo: how often the policy reaches a right answer from the solution so far.

Source: VisualPRM (arXiv 2503.10291), section 3.2, and the settings of its released data pipeline: 4 solutions to a
query, at most 16 steps, 16 continuations of every step at temperature 1.0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from model.critic.solutions import MAX_STEPS, critic_row, question_of, step_ends
from model.data.errors import InputError
from model.data.schema import Reject, Row, Step, check_row
from model.training.rollout import Query, RolloutEngine
from model.training.sampling import Sampling

Judged = Callable[[Sequence[tuple[Row, str]]], list[bool | None]]
"""Whether each (row, answer) is right; None where its scorer gave nothing."""


@dataclass(frozen=True)
class LabelSettings:
    """How solutions are sampled and labelled; the defaults are the released ones.

    Attributes:
        solutions: to each query.
        continuations: of each step.
        max_steps: a longer solution has its steps joined.
        threshold: a step is right when a larger share of its continuations is.
        sampling: of solutions and continuations.
        seed: of the sampling.
    """

    solutions: int = 4
    continuations: int = 16
    max_steps: int = MAX_STEPS
    threshold: float = 0.0
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0, max_new_tokens=4096))
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.solutions, self.continuations, self.max_steps) < 1 or not 0 <= self.threshold < 1:
            raise ValueError("solutions, continuations and max_steps must be positive, threshold in [0, 1)")


def label_steps(
    engine: RolloutEngine, solved: Sequence[tuple[Row, str]], judged: Judged, settings: LabelSettings
) -> list[list[Step] | str]:
    """The steps of every solution, labelled with the share of continuations that are right; or why it has no labels.

    What was written so far is continued ``settings.continuations`` times, and the whole judged. Nothing follows the
    last step: its label is 1 when the solution itself is right and 0 when it is wrong. A continuation that could not
    be judged is no part of its share. A solution that could not, or whose step has no continuation that could, has no
    labels.

    Args:
        engine: the policy.
        solved: rows and solutions to their questions.
        judged: the rows' scorers.
        settings: continuations, steps, sampling.
    """
    ends = [step_ends(solution, settings.max_steps) for _, solution in solved]
    begun = [(row, solution[:end]) for (row, solution), cuts in zip(solved, ends, strict=True) for end in cuts[:-1]]
    groups = engine.sample(
        [Query(row, prefix) for row, prefix in begun], settings.continuations, settings.sampling, settings.seed
    )
    continued = [
        (row, prefix + response.text) for (row, prefix), group in zip(begun, groups, strict=True) for response in group
    ]
    verdicts = iter(judged(continued))
    shares = iter([_share([next(verdicts) for _ in group]) for group in groups])
    itself = judged(solved)
    labelled: list[list[Step] | str] = []
    for (_, solution), cuts, right in zip(solved, ends, itself, strict=True):
        labels = [*(next(shares) for _ in cuts[:-1]), _share([right])][: len(cuts)]
        if None in labels:
            unjudged = f"no continuation of step {labels.index(None) + 1} could be judged"
            labelled.append("the solution could not be judged" if right is None else unjudged)
            continue
        pieces = [solution[start:end].strip() for start, end in zip([0, *cuts], cuts, strict=False)]
        labelled.append([{"text": text, "label": label} for text, label in zip(pieces, labels, strict=True)])
    return labelled


def _share(verdicts: Sequence[bool | None]) -> float | None:
    """Of right ones among those that were judged; None where none was."""
    known = [verdict for verdict in verdicts if verdict is not None]
    return sum(known) / len(known) if known else None


def critic_rows(
    engine: RolloutEngine, rows: Sequence[Row], judged: Judged, settings: LabelSettings
) -> tuple[list[Row], list[Reject]]:
    """Solve every row, label the steps, and make the rows that a critic trains on, and what was left out.

    Left out are rows of several questions, and solutions that are empty, repeat another one of the same row, hold what
    a conversation may not, or could not be judged.
    """
    rejects: list[Reject] = []
    usable = []
    for row in rows:
        try:
            question_of(row)
        except InputError as error:
            rejects.append(_reject(row["id"], str(error)))
        else:
            usable.append(row)
    solved: list[tuple[Row, str, str]] = []
    for row, group in zip(usable, _solutions(engine, usable, settings), strict=True):
        for number, solution in enumerate(group):
            name = f"solution-{number}"
            if not solution.strip():
                rejects.append(_reject(f"{row['id']}/{name}", "the solution is empty"))
            elif solution in group[:number]:
                rejects.append(_reject(f"{row['id']}/{name}", "the solution repeats another one"))
            elif reason := check_row(_answered(row, solution)):
                # Before it is continued: a reserved word that a model spelled would be read as a control token.
                rejects.append(_reject(f"{row['id']}/{name}", reason))
            else:
                solved.append((row, name, solution))
    labelled = label_steps(engine, [(row, solution) for row, _, solution in solved], judged, settings)
    made = []
    for (row, name, _), steps in zip(solved, labelled, strict=True):
        if isinstance(steps, str):
            rejects.append(_reject(f"{row['id']}/{name}", steps))
            continue
        new = critic_row(row, name, steps, settings.threshold)
        if reason := check_row(new):
            rejects.append(_reject(new["id"], reason))
        else:
            made.append(new)
    return made, rejects


def _answered(row: Row, solution: str) -> Row:
    return row | {"messages": [*row["messages"][:-1], {"role": "assistant", "content": solution}]}


def _solutions(engine: RolloutEngine, rows: Sequence[Row], settings: LabelSettings) -> list[list[str]]:
    groups = engine.sample([Query(row) for row in rows], settings.solutions, settings.sampling, settings.seed)
    return [[response.text for response in group] for group in groups]


def _reject(row_id: str, reason: str) -> Reject:
    return {"id": row_id, "step": "critic", "reason": reason}
