"""Training of the router: what compression costs, who learns from it, and that no detour changes a bit."""

import json
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from model.data.errors import InputError
from model.objectives.config import RouterObjective
from model.training.batches import pad
from model.training.config import TrainingConfig
from model.training.consistency import FrozenReference, tiles_of
from model.training.loop import train
from model.training.measures import MeasuredTiles, measure_tiles
from model.training.reader import sample_of_row
from model.training.routing import draw_intervention, measure_ratios, router_batch, routing_stage
from tests.model.training import flash_on_ranks
from tests.model.training.flash_on_ranks import BASE, moved, rows, start, stopped_and_resumed
from tests.model.training.two_ranks import limited, run_two_ranks
from tests.tiny import TILE, question_row

FLOOR = 1e-3


def settings(**changes) -> TrainingConfig:
    return TrainingConfig(**(BASE | changes))


def divergence(network, reference, processor, sample, compressed):
    """The mean divergence of one sample from full logits, by torch's own definition."""

    def log_probabilities(model, given):
        ids = torch.tensor([given.input_ids])
        flags = given.media.get("compressed")
        flags = None if flags is None else torch.from_numpy(flags)
        with torch.no_grad():
            logits = model(ids, torch.ones_like(ids), torch.from_numpy(given.media["tiles"]), flags)[0]
        return logits[torch.tensor(given.trained).nonzero()[:, 0] - 1].log_softmax(-1)

    seen = processor.compress(sample, compressed)
    target = log_probabilities(reference, sample)
    found = log_probabilities(network, seen)
    return F.kl_div(found, target, reduction="none", log_target=True).sum(-1).mean().item()


def test_the_ratio_is_that_of_the_divergences_with_and_without_the_intervention():
    network, processor = start()
    network, reference, config = deepcopy(network).eval(), moved(network), settings()
    samples = [sample_of_row(processor, row) for row in rows() if row["media"]]
    chosen = [
        draw_intervention(tiles_of(processor, s), "tile" if i % 2 else "image", f"{i}") for i, s in enumerate(samples)
    ]
    lay = partial(pad, averaging="sample", pad_id=processor.eos_token_id)
    batch = router_batch(processor, samples, chosen, range(len(samples)), lay)
    found = measure_ratios(network, batch, FrozenReference(deepcopy(reference), config), FLOOR, 7)
    for sample, tiles, ratio in zip(samples, chosen, found.tolist(), strict=True):
        less = divergence(network, reference, processor, sample, tiles)
        full = divergence(network, reference, processor, sample, np.zeros(sample.units, bool))
        assert full > 0.001 and ratio == pytest.approx(np.log((less + FLOOR) / (full + FLOOR)), abs=1e-3)


def test_an_intervention_is_one_tile_or_all_tiles_of_one_image():
    tiles = [5, 1, 3]
    one = [draw_intervention(tiles, "tile", f"{i}") for i in range(300)]
    assert all(chosen.sum() == 1 for chosen in one)
    assert np.all(np.sum(one, axis=0) > 15), "every tile has its turn"
    borders = np.cumsum(tiles)[:-1]
    images = [[part.mean() for part in np.split(draw_intervention(tiles, "image", f"{i}"), borders)] for i in range(60)]
    assert {tuple(image) for image in images} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}
    assert not len(draw_intervention([], "tile", ""))


@pytest.mark.parametrize("name", ["route tile", pytest.param("route image packs", marks=pytest.mark.slow)])
def test_a_stopped_run_continues_bit_for_bit_with_its_window(name, tmp_path):
    """The first step fills the window and teaches nothing."""
    changes = flash_on_ranks.CASES[name] or {"micro_batch_size": 4}
    network, state = flash_on_ranks.run(name, changes, tmp_path / "whole")
    first, *others = state.history
    assert first["loss"] == 0 and "threshold" not in first and "compress_share" not in first
    assert all(record["loss"] > 0 and 0 <= record["compress_share"] <= 1 for record in others)
    again, resumed = stopped_and_resumed(name, changes, tmp_path / "stopped")
    assert resumed.history == state.history and resumed.memory == state.memory
    assert len(state.memory["latest"]) > 4
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_the_router_alone_learns_and_accumulation_changes_nothing(tmp_path):
    network, state = flash_on_ranks.run("route tile", {"steps": 2}, tmp_path / "one by one")
    other, whole = flash_on_ranks.run("route tile", {"steps": 2, "micro_batch_size": 4}, tmp_path / "together")
    for ours, theirs in zip(state.history, whole.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    before = dict(start()[0].named_parameters())
    changed = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(name.startswith("router.") for name in changed)
    unused = ("router.pooling.attn3", "router.pooling.attn4", "router.pooling.norm3", "router.pooling.norm4")
    assert changed == {name for name in before if name.startswith("router.") and not name.startswith(unused)}
    for (name, a), b in zip(network.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0, msg=name)


def test_a_reference_that_gives_no_number_stops_the_run_and_names_the_rows(tmp_path):
    """Its ratios would lie under no threshold, and every tile would be labelled keep."""
    network, processor = start()
    broken, config = deepcopy(network), settings(steps=1)
    with torch.no_grad():
        broken.head.weight.fill_(float("nan"))
    objective = RouterObjective(window=12, floor=FLOOR, measure="tile")
    stage = routing_stage(FrozenReference(broken, config), processor, objective, config)
    with pytest.raises(InputError, match=r"^route: loss is nan at step 0; rows r"):
        train(deepcopy(network), processor, rows(), stage, config, tmp_path, lambda *_: None)


def test_both_measures_are_one_for_images_of_one_tile_and_differ_for_others():
    network, processor = start()
    config = settings()
    ratios = partial(measure_ratios, network, reference=FrozenReference(moved(network), config), floor=FLOOR, chunk=64)
    measured = measure_tiles(network, processor, ratios, rows()[:4], lambda *_: None)
    assert measured.tiles.tolist() == [1] + [3] * 3 + [1] + [3] * 3
    np.testing.assert_allclose(measured.image[[0, 4]], measured.tile[[0, 4]], atol=1e-6)
    assert len(set(measured.image[1:4])) == 1 and len(set(measured.tile[1:4])) == 3
    report = measured.report(50, 0.5)
    assert report["measures_tiles"] == 8
    assert report["measures_tile_compress_share"] == 0.5


def test_the_report_counts_agreement_of_labels_and_of_the_router():
    image, tile = np.array([0.0, 0.0, 3.0, 4.0]), np.array([0.0, 2.0, 1.0, 4.0])
    measured = MeasuredTiles(image, tile, np.array([2, 2, 1, 1]), np.array([0.9, 0.8, 0.9, 0.1]))
    report = measured.report(50, 0.5)
    assert report["measures_agreement"] == 0.5 and report["measures_agreement_many"] == 0.5
    assert report["measures_router_agreement_tile"] == 0.75 and report["measures_router_compress_share"] == 0.75


def printed(rng, blank_share):
    """An image of 2 x 2 tiles of paper, some of which hold small print; and which are blank."""
    blank = rng.permutation([True] * round(4 * blank_share) + [False] * round(4 * (1 - blank_share)))
    canvas = Image.new("RGB", (2 * TILE, 2 * TILE), "white")
    draw = ImageDraw.Draw(canvas)
    for number in np.flatnonzero(~blank):
        left, top = TILE * (number % 2), TILE * (number // 2)
        for line in range(4, TILE - 8, 9):
            text = "".join(chr(c) for c in rng.integers(97, 123, 8))
            draw.text((left + 3, top + line), text, fill="black", font_size=9)
    return canvas, blank


@pytest.mark.slow
@pytest.mark.parametrize("blank_share", [0.5, 0.25])
def test_blank_tiles_and_small_print_are_told_apart_when_k_is_the_share_of_blank_ones(
    tmp_path, monkeypatch, blank_share
):
    """Ratios as a trained model has them: small where a tile is blank, large where it holds print, and noisy."""
    noise = torch.Generator().manual_seed(0)

    def planted(_network, batch, *_):
        printed_N = batch.inputs.media["tiles"][batch.tiles].flatten(1).amin(1) < 128
        return printed_N.double() + 0.2 * torch.randn(len(printed_N), generator=noise, dtype=torch.double)

    monkeypatch.setattr("model.training.routing.measure_ratios", planted)
    rng = np.random.default_rng(0)
    network, processor = start()
    network, config = (
        deepcopy(network),
        settings(steps=60, batch_size=16, micro_batch_size=16, learning_rate=1e-3, eps=1e-8),
    )
    shown = [printed(rng, blank_share) for _ in range(120)]
    given = [question_row(f"p{i}", [image], "answer") for i, (image, _) in enumerate(shown[:80])]
    objective = RouterObjective(window=256, floor=FLOOR, measure="tile", percentile=100 * blank_share * 4 / 5)
    stage = routing_stage(FrozenReference(deepcopy(network), config), processor, objective, config)
    train(network, processor, given, stage, config, tmp_path, lambda *_: None)
    right = []
    with torch.no_grad():
        for image, blank in shown[80:]:
            tiles = torch.from_numpy(processor.sample(question_row("h", [image], "answer")).media["tiles"][:4])
            right += ((network.compress_probabilities(network.patches(tiles)) > 0.5).numpy() == blank).tolist()
    assert np.mean(right) > 0.95


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Where two ranks have trained every case."""
    return run_two_ranks("flash_on_ranks", tmp_path_factory.mktemp("flash-ranks"))


@pytest.mark.slow
@limited
@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("name", flash_on_ranks.CASES)
def test_two_ranks_give_the_losses_the_labels_and_the_weights_of_one_process(two_ranks, name, tmp_path):
    """One rank may see text only, or no compressed tile, while the other sees nothing else."""
    changes = {key: value for key, value in flash_on_ranks.CASES[name].items() if key != "zero"}
    network, state = flash_on_ranks.run(name, changes, tmp_path)
    for ours, theirs in zip(state.history, json.loads((two_ranks / "histories.json").read_text())[name], strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-6)
    theirs = load_file(two_ranks / f"{name}.safetensors")
    for parameter_name, parameter in network.named_parameters():
        torch.testing.assert_close(theirs[parameter_name], parameter.detach(), atol=2e-4, rtol=0, msg=parameter_name)
