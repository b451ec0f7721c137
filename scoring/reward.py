r"""The rule-based reward of online reinforcement learning (InternVL3.5, section 2.2; its released reward function).

    reward = accuracy_weight * right + format_weight * well-formed - length penalty

``right`` is the row's own scorer's judgement of the final answer (over ``correct_above``, as in the preference data);
``well-formed`` is one thought followed by a boxed answer. An answer that was cut at the token limit earns neither: it
has no end, and what a scorer finds in it is not what the model would have answered. With a ``soft_length``, longer
answers lose up to ``length_penalty``, linearly from there to ``max_length``, where cut answers stand (the soft
overlong punishment of DAPO, arXiv 2503.14476, equation 13).

A scorer that raises, hangs or runs out of memory costs the one answer: its reward is 0 and ``failed`` says why.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scoring.answer_format import has_format
from scoring.judge import Judges, Request, Verdict


@dataclass(frozen=True)
class RewardRule:
    """Weights and limits.

    Attributes:
        accuracy_weight: of a right answer.
        format_weight: of a well-formed one.
        correct_above: an answer is right when its scorer gives more than this.
        soft_length: tokens from which an answer is too long; None for no penalty.
        max_length: tokens at which the penalty is whole; needed with ``soft_length``.
        length_penalty: the whole penalty.
    """

    accuracy_weight: float = 0.9
    format_weight: float = 0.1
    correct_above: float = 0.9
    soft_length: int | None = None
    max_length: int | None = None
    length_penalty: float = 0.5

    def __post_init__(self) -> None:
        if self.soft_length is not None and (self.max_length is None or not 0 <= self.soft_length < self.max_length):
            raise ValueError(f"soft_length {self.soft_length} must be below max_length, which is {self.max_length}")

    def penalty(self, tokens: int, cut: bool) -> float:
        """What an answer of this many tokens loses: 0 up to ``soft_length``, all of it when it was cut."""
        if self.soft_length is None or self.max_length is None:
            return 0.0
        share = (tokens - self.soft_length) / (self.max_length - self.soft_length)
        return self.length_penalty * (1.0 if cut else min(1.0, max(0.0, share)))


@dataclass(frozen=True)
class Answered:
    """An answer and the row it answers.

    Attributes:
        scorer: name of the row's scorer.
        parameters: its parameters, a JSON object.
        references: the row's accepted answers.
        text: the answer, thoughts included.
        tokens: its length.
        cut: it ended at the token limit, not by itself.
    """

    scorer: str
    parameters: str
    references: Sequence[str]
    text: str
    tokens: int = 0
    cut: bool = False


@dataclass(frozen=True)
class RewardOutcome:
    """The reward of one answer, and what it is made of.

    Attributes:
        value: the reward.
        right: the scorer gave more than ``correct_above``, and the answer was not cut.
        well_formed: one thought, then a box; not cut.
        failed: why the scorer gave nothing; None where it did.
        score: what the row's scorer gave, in [0, 1]; of a cut answer too.
        cut: it ended at the token limit.
    """

    value: float
    right: bool
    well_formed: bool
    failed: str | None = None
    score: float = 0.0
    cut: bool = False


class Reward:
    """Rewards answers by one rule; holds the processes that score them.

    Args:
        rule: weights and limits.
        workers: processes that score at the same time.
        seconds: processor time for one answer.
    """

    def __init__(self, rule: RewardRule, *, workers: int = 1, seconds: float = 2.0) -> None:
        self.rule = rule
        self._judges = Judges(workers, seconds=seconds)

    def __call__(self, answers: Sequence[Answered]) -> list[RewardOutcome]:
        """An outcome for every answer, in order."""
        requests = [Request(a.scorer, a.parameters, a.text, list(a.references)) for a in answers]
        verdicts = self._judges.ask(requests)
        return [self._outcome(answer, verdict) for answer, verdict in zip(answers, verdicts, strict=True)]

    def _outcome(self, answer: Answered, verdict: Verdict) -> RewardOutcome:
        rule, well_formed = self.rule, has_format(answer.text) and not answer.cut
        if verdict.fault or verdict.failed:
            failed = f"the row's scorer: {verdict.fault}" if verdict.fault else verdict.failed
            return RewardOutcome(0.0, False, well_formed, failed, cut=answer.cut)
        right = verdict.value > rule.correct_above and not answer.cut
        value = rule.accuracy_weight * right + rule.format_weight * well_formed
        value -= rule.penalty(answer.tokens, answer.cut)
        return RewardOutcome(value, right, well_formed, score=verdict.value, cut=answer.cut)

    def close(self) -> None:
        """End the processes."""
        self._judges.close()


def reward_report(outcomes: Sequence[RewardOutcome]) -> dict[str, float]:
    """Mean reward, and the shares of answers that are right, well-formed, cut, and that no scorer could judge."""
    count = max(1, len(outcomes))
    return {
        "reward": sum(outcome.value for outcome in outcomes) / count,
        "right": sum(outcome.right for outcome in outcomes) / count,
        "well_formed": sum(outcome.well_formed for outcome in outcomes) / count,
        "cut": sum(outcome.cut for outcome in outcomes) / count,
        "failed": sum(outcome.failed is not None for outcome in outcomes) / count,
    }


def failures(outcomes: Sequence[RewardOutcome]) -> Counter[str]:
    """How often each reason kept an answer from being judged."""
    return Counter(outcome.failed for outcome in outcomes if outcome.failed is not None)
