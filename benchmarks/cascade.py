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

import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import tiny_further
from benchmarks.cascade_stages import (
    CONTROL,
    CONTROL_RATE,
    LINE,
    PILOT,
    QUICK_QUERIES,
    QUICK_ROWS,
    ROWS,
    START,
    Meter,
    Rollouts,
    Start,
    ends,
    heldout_rows,
    interval,
    make_rollouts,
    score_rows,
    show,
    stages,
    tables,
    unlike_pilot,
)
from benchmarks.harness import Result, need_line, processes_for, result, run, workers
from model.data.errors import InputError
from pipelines.profile import Profile, load_profile

AIM = 1.0
MPO, GSPO, CASCADE = "MPO", "GSPO", "MPO, then GSPO"
ARMS = {MPO: ("mpo",), GSPO: ("gspo",), CASCADE: ("mpo", "gspo"), CONTROL: ("sft",)}
"""The stages of each, in order."""
SEEDS, QUICK_SEEDS = (0, 1, 2), (0,)
BUDGET, QUICK_BUDGET = 600.0, 45.0
"""Processor seconds of an arm."""
QUERIES = 400
"""Questions of a source that are answered to learn what that costs."""
_SHARE = 0.4
"""Of the cascade's budget, for the rollouts that choose GSPO's queries and MPO on their pairs."""
QUICK_PROMPTS = 8
"""Queries of an optimiser step of GSPO, and a quarter of those of a rollout."""
_FIRST = 4
"""Where the first steps of a pilot end: whole iterations of GSPO, as the pilot is."""
_TRIES = 2
"""Of finding pairs that MPO reads in the seconds it has."""
_NEAR = 0.05
"""Of its seconds the control may be away from them before it is planned anew."""


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
    costs = {name: Cost.seen(train(PILOT, seed, start.model).meter) for name, train in stages(start, trial).items()}
    # What MPO does first is the reference's pass over its pairs: it grows with them, as an epoch does.
    costs["mpo"] = Cost(0.0, costs["mpo"].step + costs["mpo"].fixed / trial.epoch)
    shared = more_rollouts(start, seed, trial, _SHARE * start.budget, costs["mpo"])
    if start.budget - shared.seconds < 2 * max(cost.fixed + _FIRST * cost.step for cost in costs.values()):
        raise InputError(f"{start.budget:.0f} processor seconds of an arm are too few: preferences, then a few steps")
    run = _train(start, seed, GSPO, shared, lambda name, spent: costs[name].steps(start.budget - spent))
    return Opened(start, seed, shared, costs, run)


def train_arm(opened: Opened, arm: str) -> Run:
    """An arm other than GSPO, in about the seconds that GSPO took."""
    start, seed, budget, made = opened.start, opened.seed, opened.gspo.facts["seconds"], opened.shared
    if arm == MPO:
        made = most_rollouts(start, seed, made, budget, opened.costs["mpo"])

    def steps(name: str, spent: float) -> int:
        if name == "mpo":
            return made.epoch
        if name == "gspo":
            return unlike_pilot(opened.gspo.meter.within(budget - spent))
        return opened.costs[name].steps(budget - spent)

    run = _train(start, seed, arm, made, steps)
    if arm != CONTROL or abs(run.facts["seconds"] / budget - 1) < _NEAR:
        return run
    # The pilot is short, and was wrong: the run itself tells better what a step costs. The first try is not charged.
    tried = run.facts["sft_steps"]
    better = Cost.seen(run.meter).steps(budget) if tried > _FIRST else tried
    # As many steps again would find their state done.
    return run if better == tried else _train(start, seed, arm, made, lambda *_: better)


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


def adapted(profile: Profile, quick: bool) -> Profile:
    """Few queries at first; with ``quick`` few in all."""
    if not quick:
        first = profile.build_preferences.model_copy(update={"max_queries": QUERIES})
        return profile.model_copy(update={"build_preferences": first})
    training, rollout = profile.gspo.training, profile.gspo.rollout
    training = training.model_copy(update={"batch_size": QUICK_PROMPTS * rollout.responses})
    rollout = rollout.model_copy(update={"prompts": 4 * QUICK_PROMPTS})
    asked = {"max_queries": QUICK_QUERIES, "rollouts": 4}
    sections = {
        "build_preferences": profile.build_preferences.model_copy(update=asked),
        "gspo": profile.gspo.model_copy(update={"training": training, "rollout": rollout}),
    }
    return profile.model_copy(update=sections)


def measure(quick: bool, line: Path = LINE, seconds: float | None = None, processes: int = 1) -> Result:
    """Train and score every arm with three seeds (one when ``quick``), in ``seconds`` each where they are given, in so
    many processes."""
    need_line(line, "sft/model", "curate/questions", "collect/heldout")
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
    rates = {name: getattr(profile, name).training.learning_rate for name in ("mpo", "gspo")} | {"sft": CONTROL_RATE}
    details = {"rows": len(rows), "seeds": list(seeds), "processor_seconds": budget, "further_steps": steps}
    details |= {"generation_length": profile.mpo.objective.generation_length}
    details |= {"rates": rates, "arms": table, "spent": {arm: [run.facts for run in runs[arm]] for arm in runs}}
    details |= {"cascade_over": {arm: interval(scores[CASCADE], scores[arm]) for arm in (MPO, GSPO)}}
    ours, peer = table[CASCADE]["by_seed"], table[CONTROL]["by_seed"]
    ratio = table[CASCADE]["overall"] / max(table[CONTROL]["overall"], 1e-9)
    return result("cascade", "mean held-out score", ours, peer, ratio=ratio, aim=AIM, details=details)


def main() -> int:
    """Run the benchmark, an arm on each processor: processor seconds are counted, so arms may run side by side."""
    text = f"processor seconds of an arm instead of {BUDGET:.0f}"
    return run(__doc__, lambda given: measure(given.quick, LINE, given.seconds, processes_for(given)), seconds=text)


if __name__ == "__main__":
    sys.exit(main())
