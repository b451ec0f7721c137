"""Rollouts as the batches of a training stage: sampled by the network that trains, between its updates.

An iteration is one rollout and the optimiser steps on it. Which queries it asks, which answers a step takes and how
they are laid into micro-batches are functions of the seed and of the stored rollouts, so every process plans the same
and a run that was killed goes on as it was.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.data.errors import InputError
from model.data.schema import Row
from model.families.interface import Network, Processor, Sample
from model.objectives.log_probability import token_log_probabilities
from model.training.config import TrainingConfig
from model.training.engine import Engine
from model.training.policy_config import RolloutConfig
from model.training.policy_iteration import Iteration, answer_records
from model.training.policy_memory import PolicyMemory
from model.training.policy_rollouts import Progress, RewardFunction, Rollouts
from model.training.policy_store import RolloutStore
from model.training.reader import EpochOrder, Reading
from model.training.rollout import RolloutEngine
from model.training.stopping import Interrupted
from model.training.trees import Tree, TreeBatch, tree_batch
from model.training.whole_weights import whole_weights


class RolloutSource:
    """The source of a policy stage (``Source`` in stage.py).

    Args:
        rows: queries; the last message of each is left out.
        processor: of the network's family.
        training: ``batch_size`` and ``micro_batch_size`` count answers.
        ranks, rank: this process takes its share of every rollout and of every step.
        blank: give a batch without media a blank visual item.
        network: the one that trains.
        engine: samples; told of new weights before every rollout.
        reward: judges.
        rollout: how many answers, how sampled.
        directory: where rollouts are stored; survives a kill.
        memory: told which answers a step has.
        progress: told of the queries that are answered.

    Raises:
        InputError: no query is short enough, or the batch cannot be divided.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        processor: Processor,
        training: TrainingConfig,
        *,
        ranks: int,
        rank: int,
        blank: bool,
        network: Network,
        engine: RolloutEngine,
        reward: RewardFunction,
        rollout: RolloutConfig,
        directory: Path,
        memory: PolicyMemory,
        progress: Progress,
    ) -> None:
        answers = rollout.prompts * rollout.responses
        if answers % training.batch_size:
            raise InputError(
                f"training.batch_size {training.batch_size} does not divide {answers} answers of a rollout"
            )
        if training.batch_size % ranks:
            raise InputError(f"training.batch_size {training.batch_size} is not a multiple of {ranks} processes")
        self.rows, self.processor, self.training, self.rollout = rows, processor, training, rollout
        self.network, self.engine, self.memory, self.ranks, self.rank = network, engine, memory, ranks, rank
        self.steps = answers // training.batch_size  # of an iteration
        context = network.config.text_config.max_position_embeddings
        # A prompt that leaves no room for an answer would end the run in whatever iteration asks it first.
        kept = short_queries(rows, processor, min(rollout.max_prompt_tokens, context - 1))
        memory.left_out = len(rows) - len(kept)
        if not kept:
            raise InputError(
                f"no query has at most {rollout.max_prompt_tokens} tokens (rollout.max_prompt_tokens) "
                f"and leaves room in the model's context of {context}"
            )
        self._kept, self._order = kept, EpochOrder(len(kept), training.seed)
        self._store = RolloutStore(directory)
        self._rollouts = Rollouts(
            rows, engine, reward, rollout, training.seed, self._store, ranks=ranks, rank=rank, progress=progress
        )
        self._blank = processor.blank_media() if blank else None
        # The answers of a group may lie in two micro-batches that follow each other.
        self._question = lru_cache(maxsize=2)(lambda row: processor.question(rows[row]))

    @property
    def micro_batches(self) -> int:
        """Micro-batches of this rank in every optimiser step; less where one process has nothing to learn from one."""
        return len(self._micro_slots(0))

    def resume(self, packer: dict[str, Any] | None) -> None:
        """Nothing to restore: what an iteration needs is stored by its number."""

    def read(self, first: int, last: int) -> Iterator[Reading]:
        """Steps ``first`` to ``last - 1``; the rollout of an iteration is made when its first step is asked for.

        Raises:
            InputError: a checkpoint lies in the middle of an iteration whose rollouts are gone.
            Interrupted: the process was asked to stop before an iteration was ready to learn from.
        """
        iteration: Iteration | None = None
        coming: Future[list[TreeBatch]] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            for step in range(first, last):
                number, part = divmod(step, self.steps)
                if iteration is None or iteration.number != number:
                    iteration, coming = self._iteration(number, part), None
                batches = self._step_batches(iteration, part) if coming is None else coming.result()
                # The next step of the iteration takes answers that are there: made while this one trains.
                more = part + 1 < self.steps and step + 1 < last
                coming = pool.submit(self._step_batches, iteration, part + 1) if more else None
                self.memory.begin(answer_records(iteration, self._step_slots(part), self.rows))
                yield Reading(step, batches, None)

    def _iteration(self, number: int, part: int) -> Iteration:
        """The rollout of an iteration that goes on with step ``part`` of it."""
        prompts = range(number * self.rollout.prompts, (number + 1) * self.rollout.prompts)
        rows = [self._kept[self._order.at(position)] for position in prompts]
        if part and len(self._rollouts.stored(number)) < len(rows):
            raise InputError(f"{self._store.directory}: the rollouts of iteration {number} are gone; start over")
        if self.rank == 0:
            # Checkpoints of this run are not older than this one; it may be needed once more.
            oldest = (number * self.steps + part) // self.training.checkpoint_every * self.training.checkpoint_every
            self._store.drop_before(oldest // self.steps)
        groups = self._rollouts.complete(number, rows, self._ready)
        iteration = Iteration(number, groups, self.rollout.responses)
        if self.steps > 1:
            iteration.old = self._old(iteration, may_compute=not part)
        return iteration

    def _old(self, iteration: Iteration, *, may_compute: bool) -> dict[int, np.ndarray]:
        """Log-probabilities of the answers of all steps but the first under the weights before the first update."""
        rollouts = self._rollouts
        stored = rollouts.from_first(self._store.load_old(iteration.number) if self.rank == 0 else None)
        if stored is not None:
            return stored
        if not may_compute:
            raise InputError(f"{self._store.directory}: iteration {iteration.number} is incomplete; start over")
        mine: dict[int, np.ndarray] = {}
        for part in range(1, self.steps):
            rollouts.stop_if_requested()
            mine |= self._log_probabilities(iteration, part)
        old = {slot: values for found in rollouts.from_all(mine) for slot, values in found.items()}
        if self.rank == 0:
            self._store.save_old(iteration.number, old)
        return old

    def _log_probabilities(self, iteration: Iteration, part: int) -> dict[int, np.ndarray]:
        """Of this process's answers of a step, from the same micro-batches and the forward pass that it will have."""
        found: dict[int, np.ndarray] = {}
        batches = self._batches(iteration, part)
        if self.ranks > 1:
            calls = self._trainer.max([-(-len(batch.targets) // self.training.loss_chunk) for batch, _ in batches])
            for (batch, _), number in zip(batches, calls, strict=True):
                batch.loss_calls = max(1, int(number))
        for batch, slots in batches:
            values = self._trainer.evaluate(self._answer_log_probabilities, batch).cpu().numpy()
            parts = np.split(values, np.cumsum(batch.lengths)[:-1])
            found |= dict(zip(slots, parts, strict=False))  # a stand-in has no slot
        return found

    def _answer_log_probabilities(self, network: Network, batch: TreeBatch) -> Tensor:
        states = network.hidden(batch.inputs).states
        return token_log_probabilities(
            states, network.head, batch.targets, self.training.loss_chunk, calls=batch.loss_calls
        )

    def prepare(self, trainer: Engine) -> None:
        """Take the engine that trains the network."""
        self._trainer = trainer

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The network as it answers: whole, in the precision of the training."""
        # DeepSpeed holds weights of the precision that it computes in.
        half = self.training.precision == "bfloat16" and self.training.zero is None
        precision = torch.autocast(self._trainer.device.type, torch.bfloat16, enabled=half)
        with torch.no_grad(), whole_weights(self.network), precision, _full_resolution(self.network):
            given_up = False
            if self.rank == 0:  # a server is told once
                try:
                    self.engine.refresh(self.network)
                except Interrupted:
                    given_up = True  # by all processes together: the others wait here
            if self._rollouts.from_first(given_up):
                raise Interrupted
            yield

    def _step_slots(self, part: int) -> range:
        """The slots of a step of an iteration."""
        return range(part * self.training.batch_size, (part + 1) * self.training.batch_size)

    def _micro_slots(self, part: int) -> list[range]:
        """Those of this process, by micro-batch."""
        share = self.training.batch_size // self.ranks
        mine = self._step_slots(part)[self.rank * share : (self.rank + 1) * share]
        size = self.training.micro_batch_size or share
        return [mine[start : start + size] for start in range(0, share, size)]

    def _learning(self, iteration: Iteration, slots: Sequence[int]) -> list[int]:
        """Those whose answers have a gradient: not of a degenerate group, and not empty."""
        return [slot for slot in slots if iteration.advantages[slot] and len(iteration.answer(slot))]

    def _batches(self, iteration: Iteration, part: int) -> list[tuple[TreeBatch, list[int]]]:
        """The micro-batches of a step, each with the slots of its answers.

        Answers without a gradient are left out, and those that are there carry their weight in the denominator. Among
        several processes a micro-batch without any has the end of turn alone, with the advantage 0, so that all run
        the same modules.
        """
        micro = self._micro_slots(part)
        learning = [self._learning(iteration, slots) for slots in micro]
        counted = sum(iteration.counts(slot) for slots in micro for slot in slots)
        branches = sum(len(slots) or (self.ranks > 1) for slots in learning)
        weight = counted / max(1, branches)
        batches = []
        for slots, candidates in zip(learning, micro, strict=True):
            if slots:
                batches.append((self._batch(iteration, slots, weight), slots))
            elif self.ranks > 1:
                batches.append((self._stand_in(iteration, candidates[0], weight), []))
        return batches

    def _step_batches(self, iteration: Iteration, part: int) -> list[TreeBatch]:
        return [batch for batch, _ in self._batches(iteration, part)]

    def _batch(self, iteration: Iteration, slots: Sequence[int], weight: float) -> TreeBatch:
        """Answers laid into trees, those of a group into one."""
        trees = []
        for query, members in groupby(slots, key=lambda slot: slot // iteration.responses):
            branches = [iteration.answer(slot).tolist() for slot in members]
            trees.append(Tree(self._question(iteration.groups[query].row), branches))
        given = {
            "advantages": torch.from_numpy(iteration.advantages[list(slots)]),
            "sampler": torch.from_numpy(np.concatenate([iteration.sampler(slot) for slot in slots])),
            "places": torch.tensor([slot % self.training.batch_size for slot in slots]),
        }
        if iteration.old is not None and all(slot in iteration.old for slot in slots):
            given["old"] = torch.from_numpy(np.concatenate([iteration.old[slot] for slot in slots]))
        return tree_batch(trees, [weight] * len(slots), given, self._blank)

    def _stand_in(self, iteration: Iteration, slot: int, weight: float) -> TreeBatch:
        answer = [self.processor.eos_token_id]
        trunk: Sample = self._question(iteration.groups[slot // iteration.responses].row)
        given = {"advantages": torch.zeros(1), "sampler": torch.zeros(1)}
        return tree_batch([Tree(trunk, [answer])], [weight], given, self._blank)


@contextmanager
def _full_resolution(network: Network) -> Iterator[None]:
    """A Flash model that routes its tiles sees all of them whole, as it does where it is trained; then as before."""
    decision = getattr(network, "decision", None)
    if decision is None:
        yield
        return
    network.decision = None
    try:
        yield
    finally:
        network.decision = decision


def short_queries(rows: Sequence[Row], processor: Processor, most: int) -> list[int]:
    """Indices of the rows whose prompt has at most ``most`` tokens; no pixel is decoded.

    Raises:
        InputError: names the row whose medium or messages cannot be used.
    """
    # What an empty answer and its end add to a prompt is the same for all rows.
    words = {"id": "", "media": [], "messages": [{"role": "user", "content": "a"}, _EMPTY]}
    ending = processor.measure(words).tokens - len(processor.question(words).input_ids)
    asked = ({**row, "messages": [*row["messages"][:-1], _EMPTY]} for row in rows)
    return [index for index, row in enumerate(asked) if processor.measure(row).tokens - ending <= most]


_EMPTY = {"role": "assistant", "content": ""}
