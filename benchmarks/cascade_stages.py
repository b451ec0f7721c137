"""What benchmarks of Cascade RL share: runs of its stages that count processor seconds, and tables of their gains."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from components.context import StepContext
from components.scoring_table import by_family, score_row
from model.config import Section
from model.data.schema import Row
from model.data.shards import open_dataset
from pipelines.profile import Profile
from scoring.intervals import bootstrap_difference

LINE = Path("out/line")
START, CONTROL = "fine-tuned", "more fine-tuning"
ROWS, QUICK_ROWS = 250, 8
"""Held-out rows of a family."""
QUICK_QUERIES = 40
"""Questions of a source that are answered."""
PILOT = 12
"""Steps of a short run that tells what a stage costs."""
CONTROL_RATE = 1e-4  # of the stages it stands beside: a rate of fine-tuning would undo its own annealing
_THREADS = 1  # threads that wait for each other would spend processor seconds too
_S = TypeVar("_S", bound=Section)


@dataclass
class Meter:
    """Processor seconds, and when each optimiser step of the stage ``name`` was done."""

    name: str
    begun: float = field(default_factory=lambda: processor_seconds())
    steps: list[tuple[int, float]] = field(default_factory=list)

    def progress(self, label: str, done: int, total: int) -> None:
        """As ``StepContext.progress``."""
        if label == self.name:
            self.steps.append((done, processor_seconds()))

    def spent(self) -> float:
        """Seconds until the last step was done; what follows is held-out scoring."""
        return (self.steps[-1][1] if self.steps else processor_seconds()) - self.begun

    def within(self, seconds: float) -> int:
        """Steps that were done in so many."""
        return max([1, *(step for step, done in self.steps if done - self.begun <= seconds)])


@dataclass(frozen=True)
class Start:
    """What all arms of a seed share: the model, the line's outputs, the profile, the directory to work in, the budget,
    and the held-out rows that its models answer."""

    model: Path
    line: Path
    profile: Profile
    work: Path
    budget: float
    rows: Sequence[Row] = ()

    def context(self, name: str, meter: Meter) -> StepContext:
        """Of one run of a stage."""
        return StepContext(state_dir=self.work / "state" / name, progress=meter.progress)

    @property
    def heldout(self) -> Path:
        return self.line / "collect" / "heldout"


@dataclass(frozen=True)
class Rollouts:
    """Preference pairs, queries of middling difficulty, and what both cost.

    Attributes:
        pairs: dataset.
        queries: dataset.
        asked: questions of a source that were answered.
        epoch: optimiser steps that read every pair once.
        seconds: of the processor.
    """

    pairs: Path
    queries: Path
    asked: int
    epoch: int
    seconds: float

    def total(self, step: float) -> float:
        """Seconds, with those of MPO that reads every pair once, at ``step`` seconds an optimiser step."""
        return self.seconds + self.epoch * step


@dataclass(frozen=True)
class Trained:
    """A run of a stage: the model, its meter, and the records of its steps."""

    model: Path
    meter: Meter
    history: Sequence[dict[str, Any]]


Stage = Callable[[int, int, Path], Trained]
"""(steps, seed, model to start from) to what comes of it."""


def processor_seconds() -> float:
    """User and system time of this process, its threads and its children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def with_training(section: _S, **changes: Any) -> _S:
    """A training step's section with changes in its training; it scores one held-out row a family, as we score."""
    training = section.training.model_copy(update={"threads": _THREADS} | changes)  # type: ignore[attr-defined]
    return section.model_copy(update={"training": training, "heldout_rows": 1})


def make_rollouts(start: Start, seed: int, asked: int) -> Rollouts:
    """Run ``build_preferences``, for so many questions of a source, and ``select_queries`` on the fine-tuned model."""
    from components.build_preferences.step import run as build
    from components.select_queries.step import run as select

    name, meter = f"rollouts-{seed}-{asked}", Meter("")
    folder, rows, context = start.work / name, start.line / "curate" / "questions", start.context(name, meter)
    changes = {"seed": seed, "threads": _THREADS, "max_queries": asked}
    section = start.profile.build_preferences.model_copy(update=changes)
    build(
        section,
        rows=rows,
        model=start.model,
        pairs=folder / "pairs",
        rollouts=folder / "rollouts",
        context=context,
    )
    queries = folder / "queries"
    select(start.profile.select_queries, rows=rows, rollouts=folder / "rollouts", queries=queries, context=context)
    epoch = unlike_pilot(round(len(open_dataset(folder / "pairs")) / start.profile.mpo.training.batch_size))
    return Rollouts(folder / "pairs", queries, asked, epoch, meter.spent())


def stages(start: Start, made: Rollouts) -> dict[str, Stage]:
    """The three kinds of training, by the name of their stage."""
    from components.gspo.step import run as run_gspo
    from components.mpo.step import run as run_mpo
    from components.sft.step import run as run_sft

    profile, questions = start.profile, start.line / "curate" / "questions"

    def stage(name: str, run: Callable[..., Any], section: Section, rows: Path, **changes: Any) -> Stage:
        def train(steps: int, seed: int, init: Path) -> Trained:
            once = f"{name}-{seed}-{steps}-{init.parent.name}-{rows.parent.name}"
            model, meter = start.work / once / "model", Meter(name)
            config = with_training(section, steps=steps, seed=seed, checkpoint_every=10**6, **changes)
            context = start.context(once, meter)
            done = run(config, rows=rows, heldout=start.heldout, init=init, model=model, context=context)
            return Trained(model, meter, done.history)

        return train

    return {
        "sft": stage("sft", run_sft, profile.sft, questions, learning_rate=CONTROL_RATE),
        "mpo": stage("mpo", run_mpo, profile.mpo, made.pairs),
        "gspo": stage("gspo", run_gspo, profile.gspo, made.queries),
    }


def unlike_pilot(steps: int) -> int:
    """A run of as many steps as the pilot would find its state there, and do nothing."""
    return steps + 1 if steps == PILOT else max(1, steps)


def ends(history: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Of every number that the records of a run have: its means over the first and over the last fifth of them."""
    fifth = max(1, len(history) // 5)
    names = {name for record in history for name, value in record.items() if isinstance(value, float)}
    found = {}
    for name in sorted(names):
        parts = [[r[name] for r in part if name in r] for part in (history[:fifth], history[-fifth:])]
        if all(parts):
            found[name] = [round(float(np.mean(part)), 5) for part in parts]
    return found


def greedy_answers(model: Path, rows: Sequence[Row]) -> list[str]:
    """What the model answers, thoughts and all."""
    import torch

    from model.families.generation import answer_rows
    from model.families.opening import load_network, load_processor

    torch.set_num_threads(_THREADS)
    network, processor = load_network(model), load_processor(model)
    network.eval()
    return answer_rows(network, processor, rows, max_new_tokens=64)


def scores_of(rows: Sequence[Row], answers: Sequence[str]) -> np.ndarray:
    """Scores [N] of one answer to each row."""
    return np.array([score_row(row, answer).value for row, answer in zip(rows, answers, strict=True)])


def score_rows(model: Path, rows: Sequence[Row]) -> np.ndarray:
    """Scores [N] of greedy answers."""
    return scores_of(rows, greedy_answers(model, rows))


def heldout_rows(heldout: Path, without: Sequence[str], most: int) -> list[Row]:
    """The first ``most`` rows of every family but those of pre-training."""
    rows = [row for row in open_dataset(heldout).rows() if row["task"] not in without]
    return [rows[index] for indices in by_family(rows).values() for index in indices[:most]]


def interval(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Paired difference of scores [seeds, N] over rows, the seeds averaged."""
    found = bootstrap_difference(ours.mean(0), theirs.mean(0))
    return {"mean": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4)}


def tables(scores: dict[str, np.ndarray], rows: Sequence[Row]) -> dict[str, Any]:
    """Per arm: scores by family and overall, by seed, and differences to the start and, where there is one, to the
    control."""
    families = by_family(rows)
    table: dict[str, Any] = {}
    for arm, found in scores.items():
        parts = {family: found[:, indices] for family, indices in families.items()}
        starts = {family: scores[START][:, indices] for family, indices in families.items()}
        table[arm] = {
            "families": {family: round(float(part.mean()), 4) for family, part in parts.items()},
            "overall": round(float(found.mean()), 4),
            "by_seed": [round(float(one), 4) for one in found.mean(1)],
            "over_start": interval(found, scores[START]),
            "families_over_start": {family: interval(part, starts[family]) for family, part in parts.items()},
        }
        if CONTROL in scores:
            table[arm]["over_control"] = interval(found, scores[CONTROL])
    return table


def show(table: dict[str, Any]) -> None:
    """Print the table: families, overall, difference to the start."""
    families = list(table[START]["families"])
    print(" " * 18 + "".join(f"{family[:11]:>12}" for family in families) + "     overall  over the start")
    for arm, entry in table.items():
        difference = entry["over_start"]
        cells = "".join(f"{entry['families'][family]:12.3f}" for family in families)
        low, high = difference["low"], difference["high"]
        print(f"{arm:<18}{cells}{entry['overall']:12.3f}  {difference['mean']:+.3f} [{low:+.3f}, {high:+.3f}]")
