"""What each stage of Cascade RL gives: held-out accuracy after fine-tuning, MPO, GSPO, both, and more fine-tuning.

The shape of InternVL3.5's Tables 15 and 16 on the profile ``tiny``. The paper reinforces a converged model, and the
minutes of ``make demo`` do not make one: the model that it left in ``out/line`` is fine-tuned further first, once
(benchmarks/tiny_further.py). From there every arm spends the same processor seconds (user and system, all threads and
children; wall time would count whatever else the machine does). GSPO comes first, and what it took is what the others
of its seed are given: how its answers grow, and its steps with them, no plan foresees. It is charged for the rollouts
that choose its queries. MPO reads a pair once, as the paper does: it asks as many queries as leave time for one epoch
of their pairs. The cascade makes its pairs of the queries that GSPO is charged for, reads them once, and goes on with
GSPO. The control goes on fine-tuning. All answer the same held-out rows greedily. Intervals are of paired differences
over rows, each row's score averaged over the seeds first: they say what other rows would give, not what other seeds
would; the spread of the seeds stands beside them.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks import tiny_further
from benchmarks.harness import Result, processes_for, result, run, workers
from components.context import StepContext
from components.scoring_table import by_family, score_row
from model.config import Section
from model.data.errors import InputError
from model.data.schema import Row
from model.data.shards import open_dataset
from pipelines.profile import Profile, load_profile
from scoring.intervals import bootstrap_difference

LINE = Path("out/line")
AIM = 1.0
START = "fine-tuned"
CONTROL, MPO, GSPO, CASCADE = "more fine-tuning", "MPO", "GSPO", "MPO, then GSPO"
ARMS = {MPO: ("mpo",), GSPO: ("gspo",), CASCADE: ("mpo", "gspo"), CONTROL: ("sft",)}
"""The stages of each, in order."""
SEEDS, QUICK_SEEDS = (0, 1, 2), (0,)
BUDGET, QUICK_BUDGET = 600.0, 45.0
"""Processor seconds of an arm."""
ROWS, QUICK_ROWS = 250, 8
"""Held-out rows of a family."""
QUERIES, QUICK_QUERIES = 400, 40
"""Questions of a source that are answered to learn what that costs."""
_SHARE = 0.4
"""Of the cascade's budget, for the rollouts that choose GSPO's queries and MPO on their pairs."""
QUICK_PROMPTS = 8
"""Queries of an optimiser step of GSPO; the profile's own number otherwise."""
_PILOT, _FIRST = 12, 4
"""Steps of the short run that tells what a stage costs, and where its first ones end: whole iterations of GSPO."""
_TRIES = 2
"""Of finding pairs that MPO reads in the seconds it has."""
_THREADS = 1  # threads that wait for each other would spend processor seconds too
_UPDATES = 4
"""Optimiser steps on a rollout: the later ones have ratios that can be clipped."""
_GSPO_RATE = 3e-5  # where ratios are clipped it holds; where none can be, as in the demo, it costs points
_CONTROL_RATE = 1e-4  # of the stages it stands beside: a rate of fine-tuning would undo its own annealing
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


def more_rollouts(start: Start, seed: int, made: Rollouts, seconds: float, mpo: "Cost") -> Rollouts:
    """Rollouts that with one epoch of MPO on their pairs take so many seconds, as those at hand tell."""
    asked = max(1, round(seconds * made.asked / made.total(mpo.step)))
    return made if asked == made.asked else make_rollouts(start, seed, asked)


def most_rollouts(start: Start, seed: int, made: Rollouts, seconds: float, mpo: "Cost") -> Rollouts:
    """As ``more_rollouts``, also where a source has fewer questions than would be asked: what further ones of the
    others take is then seen between the last two sizes. What is tried on the way is not charged."""
    more = more_rollouts(start, seed, made, seconds, mpo)
    for _ in range(_TRIES):
        missing = seconds - more.total(mpo.step)
        a_question = (more.total(mpo.step) - made.total(mpo.step)) / max(more.asked - made.asked, 1)
        if missing < seconds / 20 or a_question <= 0:
            break
        made, more = more, make_rollouts(start, seed, more.asked + round(missing / a_question))
    return more


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
        "sft": stage("sft", run_sft, profile.sft, questions, learning_rate=_CONTROL_RATE),
        "mpo": stage("mpo", run_mpo, profile.mpo, made.pairs),
        "gspo": stage("gspo", run_gspo, profile.gspo, made.queries),
    }


def unlike_pilot(steps: int) -> int:
    """A run of as many steps as the pilot would find its state there, and do nothing."""
    return steps + 1 if steps == _PILOT else max(1, steps)


@dataclass(frozen=True)
class Cost:
    """Seconds of a stage: before its first step (a reference pass, say), and of every step."""

    fixed: float
    step: float

    def steps(self, seconds: float) -> int:
        """How many steps fit, about."""
        return unlike_pilot(round((seconds - self.fixed) / self.step))

    @staticmethod
    def seen(meter: Meter) -> "Cost":
        """In a run of more steps than the first ones.

        Raises:
            InputError: the steps took no time.
        """
        done, (last, ended) = dict(meter.steps), meter.steps[-1]
        step = (ended - done[_FIRST]) / (last - _FIRST)
        if step <= 0:
            raise InputError(f"{last - _FIRST} steps took {step:.3f} processor seconds each")
        return Cost(max(0.0, done[_FIRST] - meter.begun - _FIRST * step), step)


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


@dataclass(frozen=True)
class Run:
    """An arm after training: its model, the seconds and steps it took with how each stage began and ended, its last
    stage's meter, and the scores [N] of held-out rows."""

    model: Path
    facts: dict[str, Any]
    meter: Meter
    scores: np.ndarray


@dataclass(frozen=True)
class Opened:
    """A seed whose GSPO has run: what its other arms need. ``costs`` are of the stages, by name."""

    start: Start
    seed: int
    shared: Rollouts
    costs: dict[str, Cost]
    gspo: Run


def open_seed(start: Start, seed: int) -> Opened:
    """The rollouts that arms share, short runs that tell what stages cost, and GSPO.

    Raises:
        InputError: the budget is not enough for the preferences and a few steps.
    """
    trial = make_rollouts(start, seed, start.profile.build_preferences.max_queries)
    costs = {name: Cost.seen(train(_PILOT, seed, start.model).meter) for name, train in stages(start, trial).items()}
    # What MPO does first is the reference's pass over its pairs: it grows with them, as an epoch does.
    costs["mpo"] = Cost(0.0, costs["mpo"].step + costs["mpo"].fixed / trial.epoch)
    shared = more_rollouts(start, seed, trial, _SHARE * start.budget, costs["mpo"])
    if start.budget - shared.seconds < 2 * max(cost.fixed + _FIRST * cost.step for cost in costs.values()):
        raise InputError(f"{start.budget:.0f} processor seconds of an arm are too few: preferences, then a few steps")
    run = _train(start, seed, GSPO, shared, lambda name, spent: costs[name].steps(start.budget - spent))
    return Opened(start, seed, shared, costs, run)


def train_arm(opened: Opened, arm: str) -> Run:
    """An arm other than GSPO, in the seconds that GSPO took."""
    start, seed, budget, made = opened.start, opened.seed, opened.gspo.facts["seconds"], opened.shared
    if arm == MPO:
        made = most_rollouts(start, seed, made, budget, opened.costs["mpo"])

    def steps(name: str, spent: float) -> int:
        if name == "mpo":
            return made.epoch
        if name == "gspo":
            return unlike_pilot(opened.gspo.meter.within(budget - spent))
        return opened.costs[name].steps(budget - spent)

    return _train(start, seed, arm, made, steps)


def _train(start: Start, seed: int, arm: str, made: Rollouts, steps: Callable[[str, float], int]) -> Run:
    """``steps`` says how many a stage has, after so many seconds of its arm."""
    asked, spent = (0, 0.0) if arm == CONTROL else (made.asked, made.seconds)
    kinds, model, taken, curves, meter = stages(start, made), start.model, {}, {}, Meter("")
    for name in ARMS[arm]:
        taken[f"{name}_steps"] = steps(name, spent)
        trained = kinds[name](taken[f"{name}_steps"], seed, model)
        model, meter, curves[name] = trained.model, trained.meter, ends(trained.history)
        spent += meter.spent()
    facts = {"seconds": round(spent, 1), "asked": asked} | taken
    print(f"  seed {seed}, {arm}: " + ", ".join(f"{name} {value:.0f}" for name, value in facts.items()), flush=True)
    return Run(model, facts | {"curves": curves}, meter, score_rows(model, start.rows))


def train_all(pool: Executor, starts: dict[int, Start]) -> dict[str, list[Run]]:
    """Every arm's runs in the order of the seeds."""
    opening = [pool.submit(open_seed, start, seed) for seed, start in starts.items()]
    gspo: dict[int, Run] = {}
    others: dict[tuple[int, str], Future[Run]] = {}
    for future in as_completed(opening):
        opened = future.result()
        gspo[opened.seed] = opened.gspo
        others |= {(opened.seed, arm): pool.submit(train_arm, opened, arm) for arm in ARMS if arm != GSPO}
    runs = {arm: [others[seed, arm].result() for seed in starts] for arm in ARMS if arm != GSPO}
    runs[GSPO] = [gspo[seed] for seed in starts]
    return {arm: runs[arm] for arm in ARMS}


def score_rows(model: Path, rows: Sequence[Row]) -> np.ndarray:
    """Scores [N] of greedy answers, thoughts and all."""
    import torch

    from model.families.generation import answer_rows
    from model.families.opening import load_network, load_processor

    torch.set_num_threads(_THREADS)
    network, processor = load_network(model), load_processor(model)
    network.eval()
    answers = answer_rows(network, processor, rows, max_new_tokens=64)
    return np.array([score_row(row, answer).value for row, answer in zip(rows, answers, strict=True)])


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


def adapted(profile: Profile, quick: bool) -> Profile:
    """Several updates a rollout, as one has with more time than a demo, and few queries at first."""
    asked = {"max_queries": QUICK_QUERIES, "rollouts": 4} if quick else {"max_queries": QUERIES}
    training, rollout = profile.gspo.training, profile.gspo.rollout
    prompts = QUICK_PROMPTS if quick else rollout.prompts
    changes = {"batch_size": prompts * rollout.responses, "learning_rate": _GSPO_RATE}
    training = training.model_copy(update=changes)
    rollout = rollout.model_copy(update={"prompts": _UPDATES * prompts})
    sections = {
        "build_preferences": profile.build_preferences.model_copy(update=asked),
        "gspo": profile.gspo.model_copy(update={"training": training, "rollout": rollout}),
    }
    return profile.model_copy(update=sections)


def measure(quick: bool, line: Path = LINE, seconds: float | None = None, processes: int = 1) -> Result:
    """Train and score every arm with three seeds (one when ``quick``), in ``seconds`` each where they are given, in so
    many processes."""
    needed = (line / "sft" / "model", line / "curate" / "questions", line / "collect" / "heldout")
    if not all(path.is_dir() for path in needed):
        raise InputError(f"{line}: no finished line here; run make demo first")
    seeds, budget = (QUICK_SEEDS, QUICK_BUDGET) if quick else (SEEDS, BUDGET)
    budget = budget if seconds is None else seconds
    steps = tiny_further.QUICK_STEPS if quick else tiny_further.STEPS
    model = tiny_further.fine_tune_further(line, load_profile("tiny"), steps)
    profile = adapted(load_profile("tiny"), quick)
    rows = heldout_rows(line / "collect" / "heldout", profile.curate.pretrain_tasks, QUICK_ROWS if quick else ROWS)
    with tempfile.TemporaryDirectory() as work, workers(processes) as pool:
        before = pool.submit(score_rows, model, rows)
        starts = {seed: Start(model, line, profile, Path(work) / f"seed-{seed}", budget, rows) for seed in seeds}
        runs = train_all(pool, starts)
        scores = {START: np.stack([before.result()] * len(seeds))}
    scores |= {arm: np.stack([run.scores for run in found]) for arm, found in runs.items()}
    table = tables(scores, rows)
    show(table)
    rates = {name: getattr(profile, name).training.learning_rate for name in ("mpo", "gspo")} | {"sft": _CONTROL_RATE}
    details = {"rows": len(rows), "seeds": list(seeds), "processor_seconds": budget, "further_steps": steps}
    details |= {"rates": rates, "arms": table, "spent": {arm: [run.facts for run in runs[arm]] for arm in runs}}
    ours, peer = table[CASCADE]["by_seed"], table[CONTROL]["by_seed"]
    ratio = table[CASCADE]["overall"] / max(table[CONTROL]["overall"], 1e-9)
    return result("cascade", "mean held-out score", ours, peer, ratio=ratio, aim=AIM, details=details)


def main() -> int:
    """Run the benchmark, an arm on each processor: processor seconds are counted, so arms may run side by side."""
    text = f"processor seconds of an arm instead of {BUDGET:.0f}"
    return run(__doc__, lambda given: measure(given.quick, LINE, given.seconds, processes_for(given)), seconds=text)


if __name__ == "__main__":
    sys.exit(main())
