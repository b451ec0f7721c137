"""The threshold of a router by what it costs: chosen on rows set apart, never below what keeps the score."""

import numpy as np
import pytest

from components.context import StepContext, no_progress
from components.route import calibration, step
from components.route.calibration import Calibration, candidates, choose_threshold, set_apart
from components.route.config import CalibrationConfig, RouteConfig
from model.data.errors import InputError
from model.data.shards import write_dataset
from model.families.generation import answer_rows
from model.flash.checkpoint import load_model, load_processor, save_model
from model.flash.decisions import NOTHING, Decision
from model.flash.images import row_images
from model.objectives.config import RouterObjective
from model.training.config import TrainingConfig
from tests.tiny import byte_tokenizer, picture, question_row
from tests.tiny_flash import random_flash_model


@pytest.fixture(scope="module")
def flash():
    """A model that routes, rows, and the probability of the only tile of each."""
    import torch

    network, processor = random_flash_model(byte_tokenizer())
    rng = np.random.default_rng(0)
    rows = [question_row(f"row-{i}", [picture(rng)], "x") for i in range(20)]
    tiles = torch.from_numpy(np.concatenate([processor.question(row).media["tiles"] for row in rows]))
    with torch.inference_mode():
        probabilities = network.compress_probabilities(network.patches(tiles)).tolist()
    return network, processor, rows, probabilities


def answer_where_whole(monkeypatch, probabilities, harmless):
    """Rows are answered rightly while their tile is whole, or for good where compression is ``harmless``."""

    def answers(network, _processor, rows, progress):
        threshold = 2.0 if network.decision is None else network.decision.absolute_threshold
        return [
            "x" if probability < threshold or row["id"] in harmless else "wrong"
            for row, probability in zip(rows, probabilities, strict=True)
        ]

    monkeypatch.setattr(calibration, "answer_rows", answers)


@pytest.mark.parametrize(("harmless", "retain", "compressed"), [(8, 1.0, 8), (8, 0.9, 10), (0, 1.0, 0), (20, 1.0, 20)])
def test_as_many_tiles_are_compressed_as_keep_the_score(flash, monkeypatch, harmless, retain, compressed):
    network, processor, rows, probabilities = flash
    surest = [rows[i]["id"] for i in np.argsort(probabilities)[::-1]]
    answer_where_whole(monkeypatch, probabilities, set(surest[:harmless]))
    network.route_by(own := Decision(absolute_threshold=0.3))
    chosen = choose_threshold(network, processor, rows, CalibrationConfig(rows=20, retain=retain), no_progress)
    assert sum(probability >= chosen.threshold for probability in probabilities) == compressed
    assert (chosen.full, chosen.routed) == (1, 1 - max(0, compressed - harmless) / 20)
    assert network.decision == own


def test_where_every_answer_is_wrong_in_full_nothing_is_compressed(flash, monkeypatch):
    network, processor, rows, _ = flash
    monkeypatch.setattr(calibration, "answer_rows", lambda _network, _processor, rows, **_: ["wrong"] * len(rows))
    chosen = choose_threshold(network, processor, rows, CalibrationConfig(rows=20), no_progress)
    assert chosen == Calibration(NOTHING, full=0, routed=0)


def test_no_neighbour_changes_a_decision_at_a_threshold_that_was_chosen(flash, monkeypatch):
    network, processor, rows, probabilities = flash
    samples = [processor.question(row) for row in rows]
    for harmless in range(1, 21):
        surest = [rows[i]["id"] for i in np.argsort(probabilities)[::-1]]
        answer_where_whole(monkeypatch, probabilities, set(surest[:harmless]))
        config = CalibrationConfig(rows=20, retain=1.0)
        chosen = choose_threshold(network, processor, rows, config, no_progress)
        network.route_by(Decision(absolute_threshold=chosen.threshold))
        decided = [
            [
                bool(made.media["compressed"][0])
                for start in range(0, 20, size)
                for made in network.prepare(samples[start : start + size])
            ]
            for size in (1, 2, 7, 20)
        ]
        assert decided == decided[:1] * 4 and sum(decided[0]) == harmless


def test_candidates_stand_apart_from_every_probability_and_compress_ever_more():
    probabilities = np.array([0.9, 0.900003, 0.6, 0.6, 0.3, 0.299995, 0.1])
    told = np.array([True, True, False, True, True, True, True])
    found = candidates(probabilities, told)
    assert found == pytest.approx([0.75, 0.45, 0.2, 0.05], abs=1e-5)
    assert [int((told & (probabilities >= threshold)).sum()) for threshold in found] == [2, 3, 5, 6]
    assert candidates(probabilities, told & (probabilities > 0.8)) == pytest.approx([0.75], abs=1e-5)
    assert candidates(np.array([1e-6, 0.5]), np.ones(2, bool)) == pytest.approx([0.25], abs=1e-5)
    assert candidates(np.ones(3), np.ones(3, bool)) == [0.5]
    assert candidates(probabilities, np.zeros(7, bool)) == candidates(np.zeros(0), np.zeros(0, bool)) == []


@pytest.fixture(scope="module")
def answered(flash, tmp_path_factory):
    """A directory with the model, another one as its reference, and held-out rows; rows that the model answers rightly
    in full."""
    network, processor, *_ = flash
    directory, rng = tmp_path_factory.mktemp("route"), np.random.default_rng(3)
    network.route_by(None)
    save_model(network, processor, directory / "init")
    save_model(*random_flash_model(byte_tokenizer(), seed=1), directory / "reference")
    rows = [question_row(f"row-{i}", [picture(rng, 1 + i % 2)], "x") for i in range(16)]
    said = answer_rows(network, processor, rows)
    write_dataset(directory / "heldout", rows[:2])
    return directory, [question_row(row["id"], row_images(row), text) for row, text in zip(rows, said, strict=True)]


def route(directory, rows, place, retain):
    write_dataset(place / "rows", rows)
    training = TrainingConfig(learning_rate=1e-4, steps=2, batch_size=4, threads=1, precision="float32", log_every=1)
    config = RouteConfig(
        training=training,
        objective=RouterObjective(window=16, floor=1e-4, measure="tile"),
        compress_above=None,
        calibration=CalibrationConfig(rows=6, retain=retain),
        compared_rows=3,
        heldout_rows=2,
    )
    given = {name: directory / name for name in ("heldout", "init", "reference")}
    return step.run(config, rows=place / "rows", **given, model=place / "model", context=StepContext(place / "state"))


def test_the_step_writes_the_threshold_that_its_own_rows_chose(answered, tmp_path, monkeypatch):
    directory, rows = answered
    compared, measure = [], step.measure_tiles
    monkeypatch.setattr(step, "measure_tiles", lambda *given: compared.extend(given[3]) or measure(*given))
    result = route(directory, rows, tmp_path, retain=0.5)
    numbers, apart = result.numbers, set_apart(rows, 6)[1]
    assert numbers["calibration_mean_full"] == 1 and 0.5 <= numbers["calibration_mean"] <= 1
    network, processor = load_model(tmp_path / "model"), load_processor(tmp_path / "model")
    assert network.decision == Decision(absolute_threshold=numbers["compress_above"])
    right = [text == row["answers"][0] for row, text in zip(apart, answer_rows(network, processor, apart), strict=True)]
    assert np.mean(right) == numbers["calibration_mean"]
    assert any(sample.media["compressed"].any() for sample in network.prepare([processor.question(r) for r in apart]))
    assert numbers["rows"] == 10 and [row["id"] for row in compared] == [row["id"] for row in apart[::2]]


def test_the_step_compresses_nothing_where_no_row_that_it_set_apart_is_answered_rightly(answered, tmp_path):
    directory, rows = answered
    wrong = [question_row(row["id"], row_images(row), "never said") for row in rows]
    numbers = route(directory, wrong, tmp_path, retain=0.5).numbers
    assert (numbers["calibration_mean_full"], numbers["compress_above"], numbers["inked_tokens_kept"]) == (0, 1, 1)


def test_rows_are_set_apart_from_all_over_the_dataset_and_never_more_than_half():
    rows = [question_row(f"row-{i}", [], "x") for i in range(10)]
    kept, apart = set_apart(rows, 3)
    assert [row["id"] for row in apart] == ["row-0", "row-3", "row-6"]
    assert sorted(row["id"] for row in kept + apart) == [row["id"] for row in rows]
    assert [len(part) for part in set_apart(rows, 100)] == [5, 5]
    with pytest.raises(InputError, match=r"route\.calibration: sets rows apart, and the dataset has only one"):
        set_apart(rows[:1], 3)


@pytest.mark.parametrize("changes", [{"compress_above": None}, {"calibration": CalibrationConfig()}])
def test_a_threshold_is_given_or_chosen(changes):
    training = TrainingConfig(learning_rate=1e-3, steps=2, batch_size=4)
    objective = RouterObjective(window=16, floor=1e-4, measure="tile")
    with pytest.raises(ValueError, match="compress_above: give a threshold, or null and a calibration"):
        RouteConfig(training=training, objective=objective, **changes)
