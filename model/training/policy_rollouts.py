"""One iteration's rollouts: queries answered, rewarded and stored, part by part, by all processes together."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

import numpy as np
import torch

from model.data.schema import Row
from model.training.policy_config import RolloutConfig
from model.training.policy_store import Group, RolloutStore
from model.training.rollout import Query, Response, RolloutEngine
from model.training.sampling import Sampling
from model.training.stopping import Interrupted, stop_requested

Progress = Callable[[str, int, int], None]
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Judgement:
    """What an answer is worth.

    Attributes:
        reward: None when it could not be had; the answer is then left out of its group.
        accuracy, well_formed: what the reward is made of, for the record.
        failure: why there is no reward, in one line.
    """

    reward: float | None
    accuracy: float = 0.0
    well_formed: float = 0.0
    failure: str = ""


RewardFunction = Callable[[Sequence[tuple[Row, Response]]], Sequence[Judgement]]
"""Judges answers to rows, in order. It bounds the time that each takes, and lets none of them stop the run."""


class Rollouts:
    """Answers the queries of an iteration, or takes them from the store.

    Every process answers its share of a part. The parts are gathered, so that all hold the same groups, and stored by
    the first process before the next part begins.

    Args:
        rows: the dataset.
        engine: samples.
        reward: judges.
        config: how many answers, how sampled, what of answers that are cut.
        seed: of the run.
        store: where the groups lie.
        ranks, rank: this process among those that train together.
        progress: told of the queries that are answered.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        engine: RolloutEngine,
        reward: RewardFunction,
        config: RolloutConfig,
        seed: int,
        store: RolloutStore,
        *,
        ranks: int,
        rank: int,
        progress: Progress,
    ) -> None:
        self.rows, self.engine, self.reward, self.config = rows, engine, reward, config
        self.seed, self.store, self.ranks, self.rank, self._progress = seed, store, ranks, rank, progress
        self._sampling = Sampling(config.temperature, config.top_p, config.top_k, config.max_new_tokens)

    def stored(self, iteration: int) -> dict[int, Group]:
        """The groups of an iteration that are stored, by query; the same on every process."""
        return self.from_first(self.store.load(iteration) if self.rank == 0 else None)

    def complete(
        self, iteration: int, rows: Sequence[int], ready: Callable[[], AbstractContextManager[None]]
    ) -> list[Group]:
        """The groups of an iteration in the order of its queries; those that are not stored are sampled now.

        Args:
            iteration: number, from 0.
            rows: index of the row of every query.
            ready: makes the network ready to be run outside of its engine.

        Raises:
            Interrupted: a process was asked to stop. The parts that were complete are stored.
        """
        groups = self.stored(iteration)
        missing = [query for query in range(len(rows)) if query not in groups]
        if missing:
            with ready():
                for part in _parts(missing, rows, self.config.kept_together * self.ranks):
                    for group in self._part(iteration, part, rows):
                        groups[group.query] = group
                    self._progress(f"rollout {iteration + 1}", len(groups), len(rows))
                    self.stop_if_requested()
        return [groups[query] for query in range(len(rows))]

    def _part(self, iteration: int, part: Sequence[tuple[int, int]], rows: Sequence[int]) -> list[Group]:
        """Answer, judge, gather and store (query, occurrence) pairs.

        Raises:
            Interrupted: a process gave its share up; nothing of the part is stored.
        """
        found = self.from_all(self._share(iteration, part[self.rank :: self.ranks], rows))
        whole = [groups for groups in found if groups is not None]
        if len(whole) < len(found):
            # Not even what others have of it: a part that is cut otherwise later would be rounded otherwise.
            raise Interrupted
        together = sorted((group for groups in whole for group in groups), key=lambda group: group.query)
        if self.rank == 0:
            self.store.save(iteration, together)
        return together

    def _share(self, iteration: int, mine: Sequence[tuple[int, int]], rows: Sequence[int]) -> list[Group] | None:
        """This process's groups of a part; None when it was asked to stop: the others must hear of it first."""
        if not mine:
            return []
        seed = _seed(self.seed, iteration, mine[0][1])
        queries = [Query(self.rows[rows[query]]) for query, _ in mine]
        try:
            answers = self.engine.sample(queries, self.config.responses, self._sampling, seed)
        except Interrupted:
            return None
        return self._judged([(query, rows[query]) for query, _ in mine], answers)

    def _judged(self, queries: Sequence[tuple[int, int]], answers: Sequence[Sequence[Response]]) -> list[Group]:
        asked = [
            (self.rows[row], response) for (_, row), found in zip(queries, answers, strict=True) for response in found
        ]
        verdicts = iter(self.reward(asked))
        return [
            self._group(query, row, found, [next(verdicts) for _ in found])
            for (query, row), found in zip(queries, answers, strict=True)
        ]

    def _group(self, query: int, row: int, found: Sequence[Response], verdicts: Sequence[Judgement]) -> Group:
        cut = np.array([response.finish_reason == "length" for response in found])
        known = np.array([verdict.reward is not None for verdict in verdicts])
        if self.config.cut == "left_out":
            known &= ~cut
        names = ("reward", "accuracy", "well_formed")
        rewards, accuracies, formats = (
            np.where(known, [getattr(verdict, name) or 0.0 for verdict in verdicts], np.nan) for name in names
        )
        return Group(
            query,
            row,
            [np.array(response.token_ids, np.int64) for response in found],
            [np.array(response.log_probabilities, np.float32) for response in found],
            rewards,
            accuracies,
            formats,
            cut,
            ["" if v.reward is not None else f"row {self.rows[row]['id']}: {v.failure}" for v in verdicts],
        )

    def stop_if_requested(self) -> None:
        """Called by all processes together.

        Raises:
            Interrupted: on all of them, when one was asked to stop.
        """
        if any(self.from_all(stop_requested())):
            raise Interrupted

    def from_first(self, value: _Value) -> _Value:
        """What the first process has."""
        if self.ranks == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def from_all(self, value: _Value) -> list[_Value]:
        """What every process has, in their order."""
        values: list[_Value] = [value] * self.ranks
        if self.ranks > 1:
            torch.distributed.all_gather_object(values, value)
        return values


def _parts(queries: Sequence[int], rows: Sequence[int], size: int) -> Iterator[list[tuple[int, int]]]:
    """(query, occurrence) pairs, at most ``size`` together.

    A row may be asked more than once, where an epoch ends within the iteration: those queries go apart, because they
    are sampled with another seed. One seed would give them the same answers.
    """
    seen: Counter[int] = Counter()
    occurrence = []
    for row in rows:
        occurrence.append(seen[row])
        seen[row] += 1
    for number in range(max(seen.values())):
        chosen = [(query, number) for query in queries if occurrence[query] == number]
        yield from (chosen[start : start + size] for start in range(0, len(chosen), size))


def _seed(seed: int, iteration: int, occurrence: int) -> int:
    return int.from_bytes(sha256(f"{seed}/{iteration}/{occurrence}".encode()).digest()[:6], "little")
