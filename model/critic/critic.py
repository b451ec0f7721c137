"""Scores of solutions by a critic, and the best of several.

The score of a step is the softmax over the logits of "+" and "-" where the critic's verdict stands, P(+); the score of
a solution is the mean over its steps (VisualPRM, arXiv 2503.10291, section 3.3; "soft" in its released code). All
steps of a solution are scored in one forward pass: "+" stands in for every verdict, and causal attention keeps what
follows from a verdict's position (the released "soft_v2"). Solutions to a question share one pass of the vision half.

Shape suffixes: M steps of a batch, D hidden, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from model.critic.solutions import RIGHT, WRONG, critic_messages, question_of, split_steps
from model.data.errors import InputError
from model.data.schema import NOT_IN_ANSWERS, Row, reserved_word
from model.families.interface import Inputs, Network, Processor, Sample
from model.families.opening import load_network, load_processor
from model.flash.processor import FlashProcessor
from model.training.batches import pad


@dataclass(frozen=True)
class SolutionScore:
    """``score`` is the mean of P(+) over ``steps``; 0 for a solution that cannot be judged, which has no steps and a
    ``reason``."""

    score: float
    steps: tuple[float, ...]
    reason: str | None = None


@dataclass(frozen=True)
class Critic:
    """A process reward model.

    Attributes:
        network: of any family.
        processor: of the same family.
        batch_size: solutions in one forward pass.

    Raises:
        InputError: its tokenizer has no single token for "+" or "-".
    """

    network: Network
    processor: Processor
    batch_size: int = 8

    def __post_init__(self) -> None:
        verdict_ids(self.processor.tokenizer)

    @torch.no_grad()
    def scores(self, row: Row, solutions: Sequence[str]) -> list[SolutionScore]:
        """Score solutions to the question of ``row``; its own answer plays no part.

        A solution that has no text, holds what a conversation may not (a reserved word, a placeholder), or exceeds the
        critic's context with its question, is scored 0.

        Raises:
            InputError: the row has several questions or a medium that cannot be used.
        """
        asked = [self._sample(row, solution) for solution in solutions]
        samples = [sample for sample in asked if not isinstance(sample, str)]
        found: list[SolutionScore] = []
        if samples:
            texts, rows = self._shown(samples)
            for start in range(0, len(texts), self.batch_size):
                found += self._batch(texts[start : start + self.batch_size], rows)
        scored = iter(found)
        return [SolutionScore(0.0, (), sample) if isinstance(sample, str) else next(scored) for sample in asked]

    def _sample(self, row: Row, solution: str) -> Sample | str:
        """The conversation, "+" for every verdict; of the trained tokens, only the verdicts stay marked. Of a solution
        that cannot be judged, why."""
        question, steps = question_of(row), split_steps(solution)
        if not steps:
            return "it is empty"
        if held := reserved_word(solution, NOT_IN_ANSWERS):
            return f"it holds {held}"
        sample = self.processor.sample({**row, "messages": critic_messages(question, steps, [RIGHT] * len(steps))})
        context = self.network.config.text_config.max_position_embeddings
        if len(sample.input_ids) > context:
            return f"it has {len(sample.input_ids)} tokens with its question; the critic's context is {context}"
        first = [
            marked and not before for marked, before in zip(sample.trained, [False, *sample.trained], strict=False)
        ]
        return replace(sample, trained=first)

    def _shown(self, samples: Sequence[Sample]) -> tuple[list[Sample], Tensor | None]:
        """The samples without their media, and the visual rows of one of them: all ask about the same."""
        (first,), rows = self.network.show(samples[:1])
        if (compressed := first.media.get("compressed")) is not None:
            assert isinstance(self.processor, FlashProcessor), "only a Flash model compresses"
            samples = [self.processor.compress(sample, compressed.tolist()) for sample in samples]
        return [replace(sample, media={}, units=0) for sample in samples], rows

    def _batch(self, texts: Sequence[Sample], rows: Tensor | None) -> list[SolutionScore]:
        batch = pad(texts, "token", self.processor.eos_token_id).to(self.network.device)
        right, wrong = verdict_ids(self.processor.tokenizer)
        assert bool((batch.targets == right).all()), "a verdict does not stand where it should"
        repeated = None if rows is None else rows.repeat(len(texts), 1)
        logits_MV = self.network.head(self._states(batch.inputs, repeated))
        right_M = logits_MV[:, [right, wrong]].float().softmax(-1)[:, 0].tolist()
        values, scores = iter(right_M), []
        for text in texts:
            steps = tuple(next(values) for _ in range(sum(text.trained)))
            scores.append(SolutionScore(sum(steps) / len(steps), steps))
        return scores

    def _states(self, inputs: Inputs, rows: Tensor | None) -> Tensor:
        """Hidden states [M, D] at the kept positions of padded texts, over whose placeholders the visual rows lie."""
        output = self.network.language_model.base_model(
            **self.network.language_inputs(inputs.ids, rows),
            attention_mask=inputs.mask,
            position_ids=inputs.positions,
            use_cache=False,
        )
        return output.last_hidden_state.flatten(0, 1)[inputs.keep]


def verdict_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """Token ids of "+" and "-".

    Raises:
        InputError: one of them is not a single token, so that there is no probability of it to compare.
    """
    found = []
    for verdict in (RIGHT, WRONG):
        ids = tokenizer.encode(verdict, add_special_tokens=False).ids
        if len(ids) != 1:
            raise InputError(f"the tokenizer has {len(ids)} tokens for {verdict!r}; a critic needs one")
        found += ids
    return found[0], found[1]


def load_critic(directory: Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> Critic:
    """Open a model directory as a critic.

    Raises:
        InputError: the directory is missing, incomplete or broken, or its tokenizer has no tokens for verdicts.
    """
    return Critic(load_network(directory, dtype=dtype, device=device), load_processor(directory))


def best_of(scores: Sequence[float]) -> int:
    """Index of the highest score, the first of equal ones. Of one it is 0, whatever the score.

    Raises:
        ValueError: there are none.
    """
    if not scores:
        raise ValueError("there is no answer to choose from")
    return max(range(len(scores)), key=lambda index: scores[index])
