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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks import tiny_further
from benchmarks.harness import Result, result, run, seed_processes, side_by_side
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
BUDGET, QUICK_BUDGET = 600.0, 25.0
"""Processor seconds of an arm."""
ROWS, QUICK_ROWS = 250, 8
"""Held-out rows of a family."""
QUERIES, QUICK_QUERIES = 2500, 40
"""Questions of a source that are answered to choose queries from, and that the cascade makes pairs of."""
QUICK_PROMPTS = 8
"""Queries of an optimiser step of GSPO; the profile's own number otherwise."""
_PILOT, _FIRST = 12, 4
"""Steps of the short run that tells what a stage costs, and where its first ones end: whole iterations of GSPO."""
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
    """What all arms share: the model, the line's outputs, the profile, the directory to work in, and the budget."""

    model: Path
    line: Path
    profile: Profile
    work: Path
    budget: float

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

    def enough_for(self, seconds: float, cost: "Cost") -> int:
        """Questions of a source that are answered, and one epoch of their pairs read, in so many seconds.

        What MPO does before its first step is the reference's pass over the pairs, so it grows with them too.
        """
        return max(1, round(seconds * self.asked / (self.seconds + cost.fixed + self.epoch * cost.step)))


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


def train_arms(start: Start, seed: int) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Every arm's model, with the seconds and steps it took, and how each stage began and ended.

    Raises:
        InputError: the budget is not enough for the preferences and a few steps.
    """
    shared = make_rollouts(start, seed, start.profile.build_preferences.max_queries)
    costs = {name: Cost.seen(train(_PILOT, seed, start.model).meter) for name, train in stages(start, shared).items()}
    budget = start.budget
    if budget - shared.seconds < 2 * max(cost.fixed + _FIRST * cost.step for cost in costs.values()):
        raise InputError(f"the preferences alone took {shared.seconds:.0f} of {budget:.0f} processor seconds")
    arms: dict[str, tuple[Path, dict[str, Any]]] = {}
    reinforced = Meter("gspo")
    for arm in sorted(ARMS, key=lambda arm: arm != GSPO):
        made = make_rollouts(start, seed, shared.enough_for(budget, costs["mpo"])) if arm == MPO else shared
        spent, model, facts, curves = 0.0 if arm == CONTROL else made.seconds, start.model, {}, {}
        kinds = stages(start, made)
        for name in ARMS[arm]:
            if name == "mpo":
                steps = made.epoch
            elif arm == CASCADE:
                steps = unlike_pilot(reinforced.within(budget - spent))
            else:
                steps = costs[name].steps(budget - spent)
            trained = kinds[name](steps, seed, model)
            model, curves[name] = trained.model, ends(trained.history)
            spent += trained.meter.spent()
            facts[f"{name}_steps"] = steps
        if arm == GSPO:
            budget, reinforced = spent, trained.meter
        facts = {"seconds": round(spent, 1), "asked": 0 if arm == CONTROL else made.asked} | facts
        print(f"  seed {seed}, {arm}: " + ", ".join(f"{name} {value:.0f}" for name, value in facts.items()), flush=True)
        arms[arm] = (model, {**facts, "curves": curves})
    return arms


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
    """More queries and several updates a rollout, as one has with more time than a demo; less if ``quick``."""
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


@dataclass(frozen=True)
class Job:
    """One seed's run: the model that all arms start from, the line, the seed, the budget, and if it is a short one."""

    model: Path
    line: Path
    seed: int
    budget: float
    quick: bool

    @property
    def profile(self) -> Profile:
        """The demo's, as the arms change it."""
        return adapted(load_profile("tiny"), self.quick)

    def rows(self) -> list[Row]:
        """The held-out rows that all answer."""
        without = self.profile.curate.pretrain_tasks
        return heldout_rows(self.line / "collect" / "heldout", without, QUICK_ROWS if self.quick else ROWS)


def run_seed(job: Job) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """Of every arm: scores [rows], and what ``train_arms`` says of it."""
    with tempfile.TemporaryDirectory() as work:
        arms = train_arms(Start(job.model, job.line, job.profile, Path(work), job.budget), job.seed)
        rows = job.rows()
        return {arm: (score_rows(model, rows), facts) for arm, (model, facts) in arms.items()}


def measure(quick: bool, line: Path = LINE, seconds: float | None = None, processes: int = 1) -> Result:
    """Train and score every arm with three seeds (one when ``quick``), in ``seconds`` each where they are given; the
    seeds run in so many processes."""
    needed = (line / "sft" / "model", line / "curate" / "questions", line / "collect" / "heldout")
    if not all(path.is_dir() for path in needed):
        raise InputError(f"{line}: no finished line here; run make demo first")
    seeds, budget = (QUICK_SEEDS, QUICK_BUDGET) if quick else (SEEDS, BUDGET)
    budget = budget if seconds is None else seconds
    steps = tiny_further.QUICK_STEPS if quick else tiny_further.STEPS
    model = tiny_further.fine_tune_further(line, load_profile("tiny"), steps)
    jobs = [Job(model, line, seed, budget, quick) for seed in seeds]
    found = side_by_side(run_seed, jobs, processes)
    rows = jobs[0].rows()
    scores = {START: np.stack([score_rows(model, rows)] * len(seeds))}
    scores |= {arm: np.stack([one[arm][0] for one in found]) for arm in ARMS}
    table = tables(scores, rows)
    show(table)
    profile = jobs[0].profile
    rates = {name: getattr(profile, name).training.learning_rate for name in ("mpo", "gspo")} | {"sft": _CONTROL_RATE}
    details = {"rows": len(rows), "seeds": list(seeds), "processor_seconds": budget, "further_steps": steps}
    details |= {"rates": rates, "arms": table, "spent": {arm: [one[arm][1] for one in found] for arm in ARMS}}
    ours, peer = table[CASCADE]["by_seed"], table[CONTROL]["by_seed"]
    ratio = table[CASCADE]["overall"] / max(table[CONTROL]["overall"], 1e-9)
    return result("cascade", "mean held-out score", ours, peer, ratio=ratio, aim=AIM, details=details)


def main() -> int:
    """Run the benchmark, a seed on each processor: processor seconds are counted, so they may run side by side."""
    text = f"processor seconds of an arm instead of {BUDGET:.0f}"
    return run(__doc__, lambda given: measure(given.quick, LINE, given.seconds, seed_processes(given)), seconds=text)


if __name__ == "__main__":
    sys.exit(main())
