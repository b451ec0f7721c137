"""The answers to all queries, chunk by chunk: a chunk is stored whole, and a killed run goes on behind the last one."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from components.build_preferences.config import BuildPreferencesConfig
from components.build_preferences.judging import judge
from components.build_preferences.queries import beginning, chunks, why_unasked, without_media
from components.context import ProgressFunction
from components.rollouts import Answer
from model.data.artifact import write_atomic
from model.data.errors import InputError
from model.data.schema import Row
from model.families.interface import Processor
from model.training.rollout import Query, RolloutEngine
from model.training.sampling import Sampling
from scoring.judge import Judges

CHUNK = 32
"""Queries that are stored together: what a kill loses at most."""


class Sampled(NamedTuple):
    """A row with its judged answers, or with the reason why it has none."""

    row: Row
    answers: list[Answer]
    reason: str | None


class Sampler:
    """Samples and judges, and keeps what is done in ``directory``.

    Args:
        config: the section of the step.
        engine: samples the answers.
        processor: measures prompts.
        context: tokens that the model can read.
        judges: score the answers.
        directory: survives a kill; belongs to this model, these rows and this configuration alone.
    """

    def __init__(
        self,
        config: BuildPreferencesConfig,
        engine: RolloutEngine,
        processor: Processor,
        context: int,
        judges: Judges,
        directory: Path,
    ) -> None:
        self.config, self.engine, self.processor, self.context = config, engine, processor, context
        self.judges, self.directory = judges, directory

    def run(self, rows: Iterator[Row], total: int, progress: ProgressFunction) -> None:
        """Sample for every row that is not done. ``total`` is their number, for progress.

        Raises:
            InputError: names a row that cannot be used, or a stored file that is damaged.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        done = 0
        for number, chunk in enumerate(chunks(rows, CHUNK)):
            if self._path(number).is_file():
                self._stored(number, chunk)  # a damaged file is told of before hours of sampling
            else:
                entries = self._sample(chunk)
                record = [
                    {"id": entry.row["id"], "reason": entry.reason, "answers": [asdict(a) for a in entry.answers]}
                    for entry in entries
                ]
                write_atomic(self._path(number), json.dumps(record).encode())
            done += len(chunk)
            progress("sampling answers", done, total)

    def read(self, rows: Iterator[Row]) -> Iterator[Sampled]:
        """What ``run`` stored, row by row, for the same rows.

        Raises:
            InputError: a stored file is damaged, or of other rows.
        """
        for number, chunk in enumerate(chunks(rows, CHUNK)):
            yield from self._stored(number, chunk)

    def _stored(self, number: int, chunk: Sequence[Row]) -> list[Sampled]:
        path = self._path(number)
        try:
            records = json.loads(path.read_bytes())
            if [record["id"] for record in records] != [row["id"] for row in chunk]:
                raise ValueError("its rows are other ones")
            return [
                Sampled(row, [Answer(**answer) for answer in record["answers"]], record["reason"])
                for row, record in zip(chunk, records, strict=True)
            ]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: damaged ({error}); remove it to have its queries answered again") from error

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:08d}.json"

    def _sample(self, chunk: Sequence[Row]) -> list[Sampled]:
        reasons = [why_unasked(row, self.config, self.processor, self.context) for row in chunk]
        asked = [row for row, reason in zip(chunk, reasons, strict=True) if reason is None]
        judged = [row for row in asked if row["task"] not in self.config.open_tasks]
        unjudged = [row for row in asked if row["task"] in self.config.open_tasks]
        answers = self._answers(judged) | self._continuations(unjudged)
        return [Sampled(row, answers.get(row["id"], []), why) for row, why in zip(chunk, reasons, strict=True)]

    def _sampling(self) -> Sampling:
        config = self.config
        return Sampling(config.temperature, config.top_p, config.top_k, config.max_new_tokens)

    def _answers(self, rows: Sequence[Row]) -> dict[str, list[Answer]]:
        queries = [Query(row) for row in rows]
        groups = self.engine.sample(queries, self.config.rollouts, self._sampling(), self.config.seed)
        judged = judge(rows, groups, self.judges, self.config.correct_above)
        return {row["id"]: answers for row, answers in zip(rows, judged, strict=True)}

    def _continuations(self, rows: Sequence[Row]) -> dict[str, list[Answer]]:
        """DropoutNTP (section 2.6): the beginning of the original answer, continued by a model that sees no image."""
        ratio = self.config.dropout_start_ratio or 0.0
        begun = [beginning(row["messages"][-1]["content"], ratio) for row in rows]
        queries = [Query(without_media(row), prefix) for row, prefix in zip(rows, begun, strict=True)]
        groups = self.engine.sample(queries, 1, self._sampling(), self.config.seed)
        return {
            row["id"]: [Answer(prefix + r.text, len(r.token_ids), r.finish_reason, 0.0, "continued") for r in group]
            for row, prefix, group in zip(rows, begun, groups, strict=True)
        }
