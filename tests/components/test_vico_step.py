"""The steps ``vico`` and ``route``: what they write, what they report, what they refuse."""

import numpy as np
import pytest
import torch

from components.context import StepContext
from components.route.config import RouteConfig
from components.scoring_table import heldout_sample
from components.vico.config import VicoConfig
from model.data.errors import InputError
from model.data.shards import open_dataset
from model.objectives.config import RouterObjective, VicoObjective
from model.training.config import TrainingConfig
from tests.tiny import TILE

TRAINING = TrainingConfig(
    learning_rate=1e-3, steps=2, batch_size=4, log_every=1, checkpoint_every=2, threads=1, precision="float32"
)
OBJECTIVE = RouterObjective(window=16, floor=1e-4, measure="tile")


@pytest.fixture(scope="module")
def trained(digits, random_models, tmp_path_factory):
    """Results and model directories of ``vico`` and of ``route`` after it."""
    from components.route.step import run as route
    from components.vico.step import run as vico

    directory = tmp_path_factory.mktemp("flash")
    data = {"rows": digits / "corpus", "heldout": digits / "heldout"}
    config = VicoConfig(training=TRAINING, warmup=TRAINING, heldout_rows=2, transcription_share=0.25)
    first = vico(
        config,
        **data,
        transcriptions=digits / "corpus",
        init=random_models[0],
        model=directory / "vico",
        context=StepContext(directory / "state-vico"),
    )
    kept = {"compared_rows": 4, "heldout_rows": 2, "compress_above": 0.4, "repeat": {"read": 3.0}}
    config = RouteConfig(training=TRAINING, objective=OBJECTIVE, **kept)
    second = route(
        config,
        **data,
        init=directory / "vico",
        reference=random_models[0],
        model=directory / "route",
        context=StepContext(directory / "state-route"),
    )
    return directory, first, second


def weights(directory):
    from model.families.opening import load_network

    return load_network(directory)


def test_vico_writes_a_model_that_can_compress_and_does_not_yet(trained, random_models):
    directory, first, _ = trained
    network = weights(directory / "vico")
    assert network.compressed_projector is not None and network.decision is None
    assert {"heldout_mean", "heldout_mean_compressed", "warmup_loss"} <= set(first.numbers)
    assert set(first.values["compressed"]) == set(first.heldout)
    assert any("divergence_compressed" in record for record in first.history)
    before = weights(random_models[0]).state_dict()
    changed = {
        name.split(".")[0] for name, value in before.items() if not torch.equal(value, network.state_dict()[name])
    }
    assert changed == {"vision_tower", "multi_modal_projector", "language_model"}


def test_route_changes_the_router_alone_and_turns_routing_on(trained, digits):
    directory, _, second = trained
    before, after = weights(directory / "vico"), weights(directory / "route")
    changed = {name for name, value in before.state_dict().items() if not torch.equal(value, after.state_dict()[name])}
    assert changed and all(name.startswith("router.") for name in changed)
    assert not any(name.startswith(("router.pooling.attn3", "router.pooling.norm4")) for name in changed)
    assert after.decision.rule == "absolute" and after.decision.absolute_threshold == 0.4
    shares = {}
    for row in heldout_sample(open_dataset(digits / "heldout"), 2):  # of one tile each, none blank
        features = after.encode([row["media"][0]["bytes"]])[0].features
        shares.setdefault(row["task"], []).append(len(features) / after.rows_per_tile)
    assert second.values["kept"] == {family: np.mean(kept) for family, kept in shares.items()}
    assert second.numbers["inked_tokens_kept"] == pytest.approx(np.mean(list(second.values["kept"].values())))
    assert {"heldout_mean", "heldout_mean_full", "measures_agreement"} <= set(second.numbers)
    assert second.numbers["measures_agreement"] == 1, "an image of one tile is a tile"


def test_route_reads_a_family_as_often_as_it_is_asked_to(trained, digits, random_models, context, tmp_path):
    from components.route.step import run

    directory, _, second = trained
    tasks = [row["task"] for row in open_dataset(digits / "corpus").rows() if row["media"]]
    assert second.numbers["rows"] == len(tasks) + 2 * tasks.count("read") > len(tasks)
    config = RouteConfig(training=TRAINING, objective=OBJECTIVE, repeat={"rea": 2.0})
    data = {"rows": digits / "corpus", "heldout": digits / "heldout", "reference": random_models[0]}
    with pytest.raises(InputError, match=r"route\.repeat: no rows of the family 'rea'"):
        run(config, **data, init=directory / "vico", model=tmp_path / "model", context=context)


def test_the_measures_are_compared_on_rows_that_the_router_has_not_learned_from():
    from components.route.step import compared_rows

    heldout = [{"id": f"h{i}", "media": [b"image"] * (i % 2)} for i in range(8)]
    apart = [{"id": f"a{i}", "media": [b"image"]} for i in range(9)]
    assert [row["id"] for row in compared_rows(apart, heldout, 3)] == ["a0", "a3", "a6"]
    assert [row["id"] for row in compared_rows([], heldout, 3)] == ["h1", "h3", "h5"]
    assert len(compared_rows(apart, heldout, 99)) == 9
    assert compared_rows(apart, heldout, 0) == compared_rows([], heldout[:1], 3) == []


def test_a_warm_up_that_is_killed_in_the_middle_changes_no_bit(digits, random_models, tmp_path):
    from components.vico.step import run as vico
    from model.data.artifact import payload_sha256

    class Killed(BaseException):
        pass

    def kill(label, done, total):
        if (label, done) == ("vico-projector", 2):
            raise Killed

    warmup = TRAINING.model_copy(update={"steps": 3, "checkpoint_every": 1})
    config = VicoConfig(training=TRAINING, warmup=warmup, heldout_rows=1, objective=VicoObjective(draw="mixed"))

    def train(name, **changes):
        data = {"rows": digits / "corpus", "transcriptions": digits / "corpus", "heldout": digits / "heldout"}
        context = StepContext(tmp_path / f"state-{name}", **changes)
        return vico(config, **data, init=random_models[0], model=tmp_path / name, context=context)

    whole = train("whole")
    with pytest.raises(Killed):
        train("killed", progress=kill)
    seen = []
    again = train("killed", progress=lambda *told: seen.append(told))
    assert ("vico-projector", 2, 3) in seen and ("vico-projector", 0, 3) not in seen, "it went on, not again"
    assert (again.history, again.numbers) == (whole.history, whole.numbers)
    assert payload_sha256(tmp_path / "killed") == payload_sha256(tmp_path / "whole")


def test_a_model_that_was_never_taught_to_read_compressed_tiles_is_not_routed(digits, random_models, context, tmp_path):
    from components.route.step import run

    data = {"rows": digits / "corpus", "heldout": digits / "heldout", "reference": random_models[0]}
    config = RouteConfig(training=TRAINING, objective=OBJECTIVE)
    with pytest.raises(InputError, match="has no second projector; train it with the step vico first"):
        run(config, **data, init=random_models[0], model=tmp_path / "model", context=context)


@pytest.mark.slow
def test_families_that_cannot_compress_are_refused_by_name(digits, context, tmp_path):
    from components.vico.step import run
    from tests.tiny_qwen import save_stock

    save_stock("qwen2_5_vl", tmp_path / "qwen")
    data = dict.fromkeys(("rows", "transcriptions"), digits / "corpus")
    data |= {"heldout": digits / "heldout", "init": tmp_path / "qwen"}
    with pytest.raises(InputError, match="only InternVL models can compress tiles; the model given is of the family q"):
        run(VicoConfig(training=TRAINING), **data, model=tmp_path / "model", context=context)


@pytest.mark.parametrize("changes", [{"train": "projector"}, {"lora": {"rank": 2}}])
def test_settings_of_what_trains_are_refused(changes):
    training = TRAINING.model_dump() | changes
    for made in (
        lambda: VicoConfig(training=training),
        lambda: VicoConfig(training=TRAINING, warmup=training),
        lambda: RouteConfig(training=training, objective=OBJECTIVE),
    ):
        with pytest.raises(ValueError, match=r"\.(train|lora): .*leave it out"):
            made()


def test_blank_tiles_count_neither_as_kept_nor_as_removed():
    from components.flash_scores import blank_tiles, kept_tokens
    from model.flash.decisions import Decision
    from tests.tiny import byte_tokenizer, picture, question_row
    from tests.tiny_flash import random_flash_model

    rng = np.random.default_rng(0)
    tiles = np.full((4, 8, 8, 3), 250, np.uint8)
    tiles[1] -= rng.integers(0, 20, (8, 8, 3), dtype=np.uint8)  # paper is not of one colour
    tiles[2, 3:5, 3:5] = 20
    tiles[3], tiles[3, 3:5, 3:5] = (0, 0, 255), (255, 0, 0)  # of one grey level
    assert blank_tiles(tiles).tolist() == [True, True, False, False]
    assert blank_tiles(tiles[:0]).tolist() == []
    network, processor = random_flash_model(byte_tokenizer())
    half = picture(rng, 2, 1)
    half.paste("white", (0, 0, TILE, TILE))
    rows = [question_row("half", [half], "x", task="half"), question_row("text", [], "x", task="text")]
    network.route_by(Decision(absolute_threshold=0.0))
    assert kept_tokens(network, processor, rows) == {"half": 0.25}
    network.route_by(None)
    assert kept_tokens(network, processor, rows) == {"half": 1.0}
