"""``cascade``, ``tiny_stability``, ``flash_retention``: how seconds, thresholds, tokens and intervals are counted."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import cascade, cascade_stages, flash_retention, tiny_stability
from benchmarks.harness import workers
from components.collect.config import CollectConfig
from model.data.errors import InputError
from pipelines.profile import load_profile


def rows_of(**families):
    return [{"id": f"{task}-{number}", "task": task} for task, count in families.items() for number in range(count)]


def test_a_meter_counts_up_to_the_last_step(monkeypatch):
    clock = iter([10.0, 11.0, 15.0, 16.0, 17.0, 18.0])
    monkeypatch.setattr(cascade_stages, "processor_seconds", lambda: next(clock))
    meter = cascade_stages.Meter("gspo")
    for step in range(5):
        meter.progress("gspo", step, 4)
        meter.progress("rollouts", step, 4)
    assert meter.spent() == 8.0, "held-out scoring comes after the last step"


@pytest.fixture
def clock(monkeypatch):
    """Processor seconds that pass only when the test says so."""
    now = [0.0]
    monkeypatch.setattr(cascade_stages, "processor_seconds", lambda: now[0])
    return now


PROFILE = SimpleNamespace(build_preferences=SimpleNamespace(max_queries=100))


def rollouts_of(folder, seconds):
    """Stands for ``make_rollouts``: so many seconds and 20 steps of pairs for 100 questions, and as many for others."""

    def make(_start, _seed, asked):
        return cascade_stages.Rollouts(folder, folder, asked, round(20 * asked / 100), seconds * asked / 100)

    return make


def test_every_arm_spends_what_gspo_took_and_the_cascade_goes_on_from_mpo(clock, monkeypatch, tmp_path):
    costs, began_from = {"sft": 0.5, "mpo": 2.0, "gspo": 3.0}, []

    def stages(start, made):
        def kind(name):
            def train(steps, seed, init):
                began_from.append((name, steps, init))
                meter = cascade_stages.Meter(name)
                clock[0] += made.epoch * (name == "mpo")  # the pass of the reference
                for step in range(steps + 1):
                    # Answers grow, and with them what a step of GSPO costs.
                    clock[0] += costs[name] * (step > 0) * (1 + 0.01 * step * (name == "gspo"))
                    meter.progress(name, step, steps)
                clock[0] += 100  # held-out scoring
                history = [{"step": step, "entropy": 1.0 - step / 100} for step in range(10)]
                return cascade_stages.Trained(tmp_path / name / "model", meter, history)

            return train

        return {name: kind(name) for name in costs}

    monkeypatch.setattr(cascade, "stages", stages)
    monkeypatch.setattr(cascade, "make_rollouts", rollouts_of(tmp_path, 60.0))
    monkeypatch.setattr(cascade, "score_rows", lambda model, _: np.full(2, len(model.parent.name)))
    model = tmp_path / "model"
    starts = {seed: cascade_stages.Start(model, tmp_path, PROFILE, tmp_path, 300.0) for seed in (5, 7)}
    with workers(1) as pool:
        arms = cascade.train_all(pool, starts)
    assert list(arms) == list(cascade.ARMS)
    assert all(len(runs) == 2 for runs in arms.values())
    for number in range(2):
        facts = {arm: runs[number].facts for arm, runs in arms.items()}
        took = facts[cascade.GSPO]["seconds"]
        assert took > 330, "its plan was too short"
        assert all(fact["seconds"] == pytest.approx(took, rel=0.015) for fact in facts.values())
        assert all(curve == {"entropy": [0.995, 0.915]} for fact in facts.values() for curve in fact["curves"].values())
        alone, first_of_two = facts[cascade.MPO], facts[cascade.CASCADE]
        assert first_of_two["mpo_steps"] == 20, "one epoch of the pairs that are there"
        assert alone["asked"] / alone["mpo_steps"] == pytest.approx(100 / 20, rel=0.1), "one epoch of its own pairs"
        assert alone["asked"] > 150
    openings, others = began_from[:8], began_from[8:]
    assert [steps for _, steps, _ in openings] == (
        [cascade_stages.PILOT] * 3 + [arms[cascade.GSPO][0].facts["gspo_steps"]]
    ) * 2
    assert [(name, init) for name, _, init in others] == [
        ("mpo", model),
        ("mpo", model),
        ("gspo", tmp_path / "mpo" / "model"),
        ("sft", model),
    ] * 2
    assert arms[cascade.CASCADE][1].scores.tolist() == [4, 4], "of its last model"


def test_a_control_whose_pilot_was_slow_is_planned_again_from_its_own_steps(clock, monkeypatch, tmp_path):
    asked = []

    def train(steps, seed, init):
        asked.append(steps)
        meter = cascade_stages.Meter("sft")
        for step in range(steps + 1):
            clock[0] += 2.0 * (step > 0)
            meter.progress("sft", step, steps)
        return cascade_stages.Trained(tmp_path / "model", meter, [])

    monkeypatch.setattr(cascade, "stages", lambda *_: {"sft": train})
    monkeypatch.setattr(cascade, "score_rows", lambda *_: np.zeros(2))
    start = cascade_stages.Start(tmp_path, tmp_path, PROFILE, tmp_path, 300.0)
    made = cascade_stages.Rollouts(tmp_path, tmp_path, 100, 20, 60.0)
    for seen, tries in ((2.0, [150]), (2.05, [146]), (3.0, [100, 150]), (120.0, [2])):
        gspo = cascade.Run(tmp_path, {"seconds": 300.0}, cascade_stages.Meter("gspo"), np.zeros(2))
        opened = cascade.Opened(start, 0, made, {"sft": cascade.Cost(0.0, seen)}, gspo)
        asked.clear()
        run = cascade.train_arm(opened, cascade.CONTROL)
        assert asked == tries
        assert run.facts["seconds"] == 2.0 * tries[-1]


def test_mpo_asks_more_where_a_source_has_no_more_questions(monkeypatch, tmp_path):
    def make(_start, _seed, asked):
        # A step has the pairs of ten questions of the large source, or of two of the small one, which has 100.
        epoch = asked // 10 + min(asked, 100) // 2
        return cascade_stages.Rollouts(tmp_path, tmp_path, asked, epoch, 0.1 * (asked + min(asked, 100)))

    monkeypatch.setattr(cascade, "make_rollouts", make)
    start, mpo = cascade_stages.Start(tmp_path, tmp_path, PROFILE, tmp_path, 300.0), cascade.Cost(0.0, 1.5)
    made = cascade.most_rollouts(start, 0, make(start, 0, 80), 300.0, mpo)
    assert made.total(1.5) == pytest.approx(300, rel=0.02), "the second try"
    assert cascade.more_rollouts(start, 0, make(start, 0, 80), 300.0, mpo).total(1.5) < 220, "one size tells too little"


def test_a_budget_without_room_for_a_few_steps_is_an_error(clock, monkeypatch, tmp_path):
    def train(steps, *_):
        meter = cascade_stages.Meter("stage")
        for step in range(steps):
            clock[0] += 1
            meter.progress("stage", step + 1, steps)
        return cascade_stages.Trained(tmp_path, meter, [])

    monkeypatch.setattr(cascade, "stages", lambda *_: dict.fromkeys(("sft", "mpo", "gspo"), train))
    monkeypatch.setattr(cascade, "make_rollouts", rollouts_of(tmp_path, 39.0))
    with pytest.raises(InputError, match="8 processor seconds of an arm are too few"):
        cascade.open_seed(cascade_stages.Start(tmp_path, tmp_path, PROFILE, tmp_path, 8.0), 0)


def test_every_seed_of_the_stability_starts_from_the_same_model(monkeypatch, tmp_path):
    for name in ("sft/model", "curate/questions", "collect/heldout"):
        (tmp_path / name).mkdir(parents=True)
    rows, began_from = rows_of(read=8, sum=2), []

    def stages(start, made):
        def kind(name):
            def train(steps, seed, init):
                began_from.append((name, steps, seed, made.asked, init.name))
                return cascade_stages.Trained(
                    tmp_path / f"{name}-{seed}", cascade_stages.Meter(name), [{"entropy": 0.5}]
                )

            return train

        return {name: kind(name) for name in ("mpo", "gspo")}

    scores = {"model": 5, "mpo-0": 5, "mpo-1": 4, "mpo-2": 6, "gspo-0": 6, "gspo-1": 5, "gspo-2": 7}
    monkeypatch.setattr(tiny_stability, "stages", stages)
    monkeypatch.setattr(tiny_stability, "make_rollouts", rollouts_of(tmp_path, 1.0))
    monkeypatch.setattr(tiny_stability, "heldout_rows", lambda *_: rows)
    monkeypatch.setattr(tiny_stability, "score_rows", lambda model, _: (np.arange(10) < scores[model.name]) + 0.0)
    measured = tiny_stability.measure(False, tmp_path)
    table, tiny = measured.details["stages"], load_profile("tiny")
    steps = {name: getattr(tiny, name).training.steps for name in ("mpo", "gspo")}
    asked = tiny.build_preferences.max_queries
    assert began_from == [
        run
        for seed in (0, 1, 2)
        for run in (
            ("mpo", steps["mpo"], seed, asked, "model"),
            ("gspo", steps["gspo"], seed, asked, f"mpo-{seed}"),
        )
    ]
    assert table["after MPO"]["by_seed"] == [0.5, 0.4, 0.6]
    assert table["after MPO"]["over_start"]["mean"] == 0.0
    assert table["after GSPO"]["over_start"]["mean"] == pytest.approx(0.1)
    assert table["after GSPO"]["families"] == {"read": 0.75, "sum": 0.0}
    assert [run["after MPO"]["mean"] for run in measured.details["runs"]] == pytest.approx([0.0, -0.1, 0.1])
    assert measured.ratio == pytest.approx(1.2)


def test_arms_are_compared_on_the_same_rows_with_seeds_averaged():
    rows = rows_of(read=30, sum=10)
    start = np.tile(np.r_[np.ones(15), np.zeros(25)], (2, 1))
    better = start.copy()
    better[0, 30:] = 1.0  # one of two seeds learns to add
    table = cascade_stages.tables(
        {cascade_stages.START: start, cascade_stages.CONTROL: start, cascade.CASCADE: better}, rows
    )
    entry = table[cascade.CASCADE]
    assert entry["families"] == {"read": 0.5, "sum": 0.5}
    assert entry["by_seed"] == [0.625, 0.375]
    assert entry["over_start"]["mean"] == entry["over_control"]["mean"] == 0.125
    assert 0 < entry["over_start"]["low"] < 0.125 < entry["over_start"]["high"]
    assert entry["families_over_start"]["read"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert entry["families_over_start"]["sum"] == {"mean": 0.5, "low": 0.5, "high": 0.5}


@pytest.mark.parametrize("kept", [1.0, 0.9, 0.625, 0.5, 0.25])
def test_a_threshold_leaves_the_share_of_tokens_that_was_asked_for(kept):
    probabilities = np.random.default_rng(0).random(4000)
    blank = np.zeros(4000, bool)
    blank[:1000] = True
    probabilities[:1000] = 1.0  # blank tiles count on neither side
    compressed = probabilities >= flash_retention.threshold_for(kept, probabilities, blank)
    assert np.where(compressed[~blank], 0.25, 1.0).mean() == pytest.approx(kept, abs=1e-3)


def test_random_tiles_are_as_many_of_each_kind():
    rng = np.random.default_rng(0)
    compressed, blank = rng.random(500) < 0.6, rng.random(500) < 0.3
    drawn = flash_retention.at_random(compressed, blank, seed=1)
    assert drawn[blank].sum() == compressed[blank].sum()
    assert drawn[~blank].sum() == compressed[~blank].sum()
    assert (drawn != compressed).any()


@pytest.mark.parametrize(("kept", "side"), [(0.2, 28), (0.25, 28), (0.5, 42), (0.57, 56), (1.0, 56)])
def test_the_smallest_image_has_at_least_the_tokens(kept, side):
    assert flash_retention.smallest_side(kept, tile=56, patch=7) == side


def test_retention_of_paired_rows_is_narrower_than_of_shuffled_ones():
    rng = np.random.default_rng(0)
    full = (rng.random(2000) < 0.8).astype(float)
    ours = full * (rng.random(2000) < 0.99)
    paired, shuffled = flash_retention.retention(ours, full), flash_retention.retention(rng.permutation(ours), full)
    assert paired["retained"] == shuffled["retained"] == pytest.approx(0.99, abs=0.01)
    assert paired["low"] < paired["retained"] < paired["high"] < 1.0
    assert paired["high"] - paired["low"] < (shuffled["high"] - shuffled["low"]) / 2


def test_validation_rows_and_test_rows_are_apart_and_of_every_family_in_proportion():
    digits = {"transcriptions": 1, "questions": 10, "mix": {"locate": 2.0}}
    collect = CollectConfig.model_validate({"digits": digits, "embedded": {"fine_print": {"rows": 10}}})
    validation, test = flash_retention.heldout_rows(collect, ["transcribe", "transcribe_fine"], 18, 27)
    shares = {"locate": 2}
    tasks = ["count", "locate", "maximum", "read", "read_beside", "read_fine", "read_sparse", "tallest_label"]
    assert [row["task"] for row in validation] == [task for task in tasks for _ in range(2 * shares.get(task, 1))]
    assert [row["task"] for row in test] == [task for task in tasks for _ in range(3 * shares.get(task, 1))]
    assert not {row["id"] for row in validation} & {row["id"] for row in test}
    assert all("heldout" in row["id"] for row in validation + test)
