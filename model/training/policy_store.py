"""Rollouts on disk: what a run that was killed goes on from.

The network that sampled an iteration's answers is gone after the first update, so a checkpoint in the middle of an
iteration is of use only together with them. Each file is complete or absent::

    <directory>/000012/answers-00064.safetensors    groups of iteration 12; the first of them is its query 64
    <directory>/000012/old.safetensors              log-probabilities before the iteration's first update
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from model.data.artifact import write_atomic
from model.data.errors import InputError

_OLD = "old.safetensors"


@dataclass(frozen=True)
class Group:
    """The answers to one query, with their rewards; G answers.

    Attributes:
        query: its number in the iteration.
        row: index of its row.
        answers: token ids of each answer, int64.
        sampler: log-probabilities of those tokens as the sampling engine gave them, float32.
        rewards: float64 [G]; NaN where an answer is no part of the group, because its reward could not be had.
        accuracies, formats: float64 [G], what the rewards are made of; NaN likewise.
        cut: bool [G], whether an answer ends at the limit.
        failures: for each answer, why its reward could not be had; empty where it could.
    """

    query: int
    row: int
    answers: Sequence[np.ndarray]
    sampler: Sequence[np.ndarray]
    rewards: np.ndarray
    accuracies: np.ndarray
    formats: np.ndarray
    cut: np.ndarray
    failures: Sequence[str]


class RolloutStore:
    """The rollouts below one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(self, iteration: int, groups: Sequence[Group]) -> None:
        """Store groups of an iteration, at least one, in one file."""
        answers = [answer for group in groups for answer in group.answers]
        arrays = {
            "query": np.array([group.query for group in groups]),
            "row": np.array([group.row for group in groups]),
            "sizes": np.array([len(group.answers) for group in groups]),
            "lengths": np.array([len(answer) for answer in answers]),
            "tokens": np.concatenate(answers).astype(np.int64),
            "sampler": np.concatenate([values for group in groups for values in group.sampler]).astype(np.float32),
        }
        arrays |= {name: np.concatenate([getattr(group, name) for group in groups]) for name in _PER_ANSWER}
        told = json.dumps([list(group.failures) for group in groups])
        path = self._folder(iteration) / f"answers-{groups[0].query:05d}.safetensors"
        self._write(path, arrays, {"failures": told})

    def load(self, iteration: int) -> dict[int, Group]:
        """The stored groups of an iteration by their queries.

        Raises:
            InputError: a file is damaged.
        """
        found = {}
        for path in sorted(self._folder(iteration).glob("answers-*.safetensors")):
            for group in _groups(path):
                found[group.query] = group
        return found

    def save_old(self, iteration: int, old: Mapping[int, np.ndarray]) -> None:
        """Store log-probabilities of answers before the update, by the answers' numbers in the iteration."""
        arrays = {
            "slots": np.array(list(old), np.int64),
            "lengths": np.array([len(values) for values in old.values()], np.int64),
            "values": np.concatenate([np.zeros(0, np.float32), *old.values()]),
        }
        self._write(self._folder(iteration) / _OLD, arrays, {})

    def load_old(self, iteration: int) -> dict[int, np.ndarray] | None:
        """What ``save_old`` stored; None when it has not.

        Raises:
            InputError: the file is damaged.
        """
        path = self._folder(iteration) / _OLD
        if not path.is_file():
            return None
        try:
            arrays = load_file(path)
            values = np.split(arrays["values"], np.cumsum(arrays["lengths"])[:-1])
            return dict(zip(arrays["slots"].tolist(), values, strict=False))
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: damaged ({error})") from error

    def drop_before(self, iteration: int) -> None:
        """Remove the rollouts of earlier iterations."""
        for folder in self.directory.glob("[0-9]*"):
            if int(folder.name) < iteration:
                shutil.rmtree(folder)

    def _folder(self, iteration: int) -> Path:
        return self.directory / f"{iteration:06d}"

    def _write(self, path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save(arrays, metadata))


_PER_ANSWER = ("rewards", "accuracies", "formats", "cut")


def _groups(path: Path) -> list[Group]:
    try:
        with safe_open(path, framework="np") as stream:
            arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            failures = json.loads(stream.metadata()["failures"])
        return _split(arrays, failures)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it to have its queries answered again") from error


def _split(arrays: Mapping[str, np.ndarray], failures: Sequence[Sequence[str]]) -> list[Group]:
    of_answers = np.cumsum(arrays["lengths"])[:-1]
    of_groups = np.cumsum(arrays["sizes"])[:-1]
    tokens, sampler = (np.split(arrays[name], of_answers) for name in ("tokens", "sampler"))
    borders = [0, *of_groups.tolist(), len(tokens)]
    parts = [np.split(arrays[name], of_groups) for name in _PER_ANSWER]
    return [
        Group(int(query), int(row), tokens[start:end], sampler[start:end], *values, failures=failed)
        for query, row, (start, end), *values, failed in zip(
            arrays["query"], arrays["row"], pairwise(borders), *parts, failures, strict=True
        )
    ]
