"""``flash_retention`` from a line's files to its table, with random weights."""

import numpy as np
import pytest
import torch

from benchmarks import flash_retention, flash_training
from components.route.config import RouteConfig
from components.vico.config import VicoConfig
from model.data.errors import InputError
from model.data.shards import write_dataset
from model.objectives.config import RouterObjective
from model.training.config import TrainingConfig
from pipelines.profile import load_profile
from tests.tiny import TILE, byte_tokenizer, picture, question_row
from tests.tiny_flash import random_flash_model


@pytest.fixture(scope="module")
def asked():
    """Rows of two families; the left half of their images is blank."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        image = picture(rng, 2, 1)
        image.paste("white", (0, 0, TILE, TILE))
        rows.append(question_row(f"r{number}", [image], "a", task=("read", "count")[number % 2]))
    return rows


@pytest.fixture(scope="module")
def line(asked, tiny_directory, tmp_path_factory):
    """What fine-tuning leaves behind, at the place where the benchmark looks for it."""
    directory = tmp_path_factory.mktemp("line")
    for name in ("curate/questions", "collect/heldout"):
        (directory / name).parent.mkdir(parents=True)
        write_dataset(directory / name, asked)
    (directory / "sft").mkdir()
    (directory / "sft" / "model").symlink_to(tiny_directory)
    return directory


@pytest.fixture(scope="module")
def measured(line, asked, tmp_path_factory):
    """Every policy's scores with a model that ``vico`` and ``route`` made, two steps each."""
    torch.set_num_threads(1)
    training = TrainingConfig(
        learning_rate=1e-3, steps=2, batch_size=4, checkpoint_every=2, threads=1, precision="float32"
    )
    objective = RouterObjective(window=16, floor=1e-4, measure="tile")
    sections = {"vico": VicoConfig(training=training), "route": RouteConfig(training=training, objective=objective)}
    profile = load_profile("tiny").model_copy(update=sections)
    work = tmp_path_factory.mktemp("work")
    start = flash_training.start_of(line)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(flash_training, "PHASES", tuple(phase | {"steps": 2} for phase in flash_training.PHASES))
        patched.setattr(flash_training, "ROUTE_STEPS", 2)
        patched.setattr(flash_training, "REPEAT", {"read": 2.0})
        patched.setattr(flash_training, "TRANSCRIPTION_SHARE", 0.0)
        model, seconds = flash_training.retrain(profile, line, start, work, seed=3)
        assert seconds > 0
        again = flash_training.retrain(profile, line, start, work, seed=3)
        assert again == (model, seconds), "what was trained is not trained again"
    return flash_retention.measure_model(model, start, asked[:6], asked[6:], quick=True, seed=0)


def test_a_seed_is_trained_from_the_lines_own_model_and_every_policy_answers_the_same_rows(measured):
    tiles = {name: kept for name, (_, kept, _) in measured.items()}
    assert tiles["full"] == tiles["before"] == 1.0 and tiles["compress everything"] == 0.25
    assert tiles["random"] == tiles["router"] < 1.0
    (small,) = (name for name in tiles if name.startswith("images of"))
    assert tiles[small] >= tiles["router"], "a peer is never given fewer tokens"
    assert {len(scores) for scores, *_ in measured.values()} == {6}


def test_the_table_says_what_is_kept_of_the_model_before_and_what_the_lead_is_worth(measured, asked):
    found = {name: (np.arange(6) % 2 + 0.0, *rest) for name, (_, *rest) in measured.items()}
    found["before"] = (np.ones(6), *found["before"][1:])
    found["random"] = (np.zeros(6), *found["random"][1:])
    table = flash_retention.summarise(found, asked[6:])
    assert table["router"]["retained"] == 1.0
    assert table["router"]["of_before"]["retained"] == 0.5, "routing costs nothing, learning to be routed does"
    assert table["router"]["over random"]["mean"] == 0.5
    assert table["router"]["over random"]["low"] < 0.5 < table["router"]["over random"]["high"]
    assert table["router"]["over compress everything"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    flash_retention.show(table)


def test_a_family_that_scores_more_when_it_is_routed_does_not_pay_for_another(measured, asked):
    rows = [row | {"task": "harmed" if index < 3 else "lost"} for index, row in enumerate(asked[6:])]
    shares = {"harmed": 1.0, "lost": 1.0}
    found = {name: (np.ones(6), kept, shares) for name, (_, kept, _) in measured.items()}
    found["full"] = (np.array([0.0, 1, 1, 1, 1, 1]), 1.0, shares)
    found["router"] = (np.array([1.0, 1, 1, 1, 1, 0]), 1.0, shares)
    routed = flash_retention.summarise(found, rows)["router"]
    assert (routed["retained"], routed["families_capped"]) == (1.0, 0.8)


def test_a_tile_is_blank_where_the_line_calls_it_blank():
    image = picture(np.random.default_rng(0), 3, 1)
    image.paste("white", (0, 0, TILE, TILE))
    image.paste((0, 0, 255), (TILE, 0, 2 * TILE, TILE))
    image.paste((255, 0, 0), (TILE + 9, 9, TILE + 20, 20))
    network, processor = random_flash_model(byte_tokenizer())
    answers = flash_retention.Answers(network, processor, [question_row("r", [image], "a")])
    assert answers.blank.tolist() == [True, False, False, False]


def test_an_aim_is_reached_only_when_every_seed_reaches_it():
    def table(kept, retained, low, family, everything, over_random):
        families = {"read": {"high": family}, "count": {"high": 1.0}}
        router = {"kept": kept, "retained": retained, "low": low, "families": families}
        router["over random"] = {"low": over_random}
        return {"full": {"score": 0.9}, "compress everything": {"score": everything}, "router": router}

    good = table(0.5, 0.996, 0.99, 0.99, 0.7, 0.01)
    assert all(flash_retention.aims([good, good]).values())
    bad = table(0.6, 0.98, 0.97, 0.97, 0.85, -0.01)
    assert not any(flash_retention.aims([good, bad]).values())


def test_a_line_without_a_model_is_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no such model; run make demo first"):
        flash_training.start_of(tmp_path)
