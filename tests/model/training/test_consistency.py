"""Visual consistency learning: what is compressed, what it is held against, and that no detour changes a bit."""

from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.data.errors import InputError
from model.objectives.config import VicoObjective
from model.training.attention import use_varlen_attention
from model.training.batches import pad
from model.training.config import TrainingConfig
from model.training.consistency import (
    DivergenceRecord,
    FrozenReference,
    consistency_batches,
    consistency_stage,
    draw_compressed,
    require_flash,
    tiles_of,
    visual_consistency_loss,
)
from model.training.loop import train
from model.training.projector_warmup import pooled_rows, warmup_stage
from model.training.reader import BatchReader, Drawn, sample_of_row
from tests.model.training import flash_on_ranks
from tests.model.training.flash_on_ranks import BASE, PACKS, moved, rows, start, stopped_and_resumed
from tests.tiny import picture, question_row

SMALL = (0.0625,)


def settings(**changes) -> TrainingConfig:
    return TrainingConfig(**(BASE | changes))


def batches_of(config, xi, given=None):
    """The micro-batches of a first step."""
    network, processor = start()
    stage = consistency_stage(FrozenReference(deepcopy(network), config), processor, VicoObjective(xi=xi), config)
    source = stage.source(given or rows(), processor, config, ranks=1, rank=0, blank=False)
    return next(source.read(0, 1)).batches


def loss_of(network, reference, batches, config):
    denominator = float(sum(batch.weights.sum() for batch in batches))
    given = {"reference": FrozenReference(reference, config), "record": DivergenceRecord(), "next_token_weight": 0.0}
    return sum(visual_consistency_loss(network, batch, denominator, **given, chunk=5) for batch in batches), denominator


def naive(network, reference, processor, row, compressed):
    """The mean divergence of one row from full logits, by torch's own definition."""
    full = sample_of_row(processor, row)
    seen = processor.compress(full, compressed)

    def log_probabilities(model, sample):
        ids = torch.tensor([sample.input_ids])
        tiles = torch.from_numpy(sample.media["tiles"]) if sample.units else None
        flags = torch.from_numpy(sample.media["compressed"]) if "compressed" in sample.media and sample.units else None
        logits = model(ids, torch.ones_like(ids), tiles, flags)[0]
        answer = torch.tensor(sample.trained).nonzero()[:, 0]
        return logits[answer - 1].log_softmax(-1)

    target = log_probabilities(reference, full).detach()
    found = log_probabilities(network, seen)
    return F.kl_div(found, target, reduction="none", log_target=True).sum(-1).mean()


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_loss_and_gradient_are_those_of_whole_distributions_row_by_row(packed):
    """Text, one image, several images of several tiles; aligned by response index, although lengths differ."""
    network, processor = start()
    network, reference = deepcopy(network), moved(network)
    config = settings(**(PACKS | {"batch_size": 1} if packed else {"micro_batch_size": 3, "batch_size": 6}))
    batches = batches_of(config, SMALL)
    if packed:
        with use_varlen_attention(network.language_model):
            loss, samples = loss_of(network, deepcopy(reference), batches, config)
            loss.backward()
    else:
        loss, samples = loss_of(network, deepcopy(reference), batches, config)
        loss.backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    assert samples == pytest.approx(sum(len(batch.row_ids) for batch in batches))
    by_id = {row["id"]: row for row in rows()}
    network.zero_grad()
    parts = []
    for row_id in (row_id for batch in batches for row_id in batch.row_ids):
        sample = sample_of_row(processor, by_id[row_id])
        parts.append(naive(network, reference, processor, by_id[row_id], np.ones(sample.units, bool)))
    expected = torch.stack(parts).mean()
    expected.backward()
    assert expected > 0.001
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    for name, gradient in found.items():
        wanted = dict(network.named_parameters())[name].grad
        if wanted is not None:
            torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5, msg=name)


def test_a_policy_that_is_its_reference_and_sees_all_has_nothing_to_learn():
    network, _ = start()
    network, config = deepcopy(network), settings(micro_batch_size=4)
    loss, _ = loss_of(network, deepcopy(network), batches_of(config, (0.25,)), config)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    gradients = [p.grad.abs().max() for p in network.parameters() if p.grad is not None]
    assert gradients and max(gradients) < 1e-5


def test_tiles_of_an_image_share_a_draw_and_images_do_not():
    tiles = [5, 1, 3, 1, 1, 1, 1, 1]
    drawn = [np.split(draw_compressed(tiles, (0.25, 0.0625), f"{i}"), np.cumsum(tiles)[:-1]) for i in range(40)]
    assert all(len(set(image.tolist())) == 1 for draw in drawn for image in draw)
    shares = np.mean([[image[0] for image in draw] for draw in drawn], axis=0)
    assert np.all((shares > 0.2) & (shares < 0.8)), "each image is drawn for itself"
    assert len({tuple(map(tuple, draw)) for draw in drawn}) > 30
    assert draw_compressed(tiles, SMALL, "").all() and not draw_compressed(tiles, (0.25,), "").any()


def test_half_of_the_images_may_be_drawn_by_tile():
    drawn = np.array([draw_compressed([3, 1], (0.25, 0.0625), f"{i}", "mixed") for i in range(400)])
    assert drawn.shape == (400, 4)
    assert np.all((drawn.mean(0) > 0.4) & (drawn.mean(0) < 0.6))
    whole = (drawn[:, :3] == drawn[:, :1]).all(1)
    assert whole.mean() == pytest.approx(0.5 + 0.5 / 4, abs=0.07), "by tile, one image in four is of one kind"
    assert draw_compressed([3, 1], SMALL, "", "mixed").all()


def test_every_tile_of_every_image_may_be_drawn():
    drawn = np.array([draw_compressed([3, 1], (0.25, 0.0625), f"{i}", "tile") for i in range(400)])
    assert np.all((drawn.mean(0) > 0.4) & (drawn.mean(0) < 0.6))
    whole = (drawn[:, :3] == drawn[:, :1]).all(1)
    assert whole.mean() == pytest.approx(1 / 4, abs=0.07), "one image of three tiles in four is of one kind"
    assert draw_compressed([3, 1], SMALL, "", "tile").all()


def test_draws_depend_on_the_place_in_the_step_alone():
    """Neither the micro-batch nor the rank that a row is in changes its compressions."""
    _, processor = start()
    tiles = {row["id"]: processor.sample(row).units for row in rows()}

    def drawn(micro, ranks):
        found = {}
        collate = consistency_batches(processor, (0.25, 0.0625), 3)
        for rank in range(ranks):
            reader = BatchReader(
                rows(),
                processor,
                settings(batch_size=8, micro_batch_size=micro),
                ranks=ranks,
                rank=rank,
                collate=collate,
            )
            for reading in reader.read(0, 2):
                for batch in reading.batches:
                    flags = batch.inputs.media.get("compressed", torch.zeros(0, dtype=torch.bool)).tolist()
                    for row_id in batch.row_ids:
                        own, flags = flags[: tiles[row_id]], flags[tiles[row_id] :]
                        found.setdefault((reading.step, row_id), []).append(own)
                    assert not flags
        return {place: sorted(draws) for place, draws in found.items()}

    alone = drawn(1, 1)
    assert {flag for draws in alone.values() for own in draws for flag in own} == {True, False}
    for micro, ranks in ((3, 1), (8, 1), (1, 2), (4, 2)):
        assert drawn(micro, ranks) == alone


def test_frames_of_a_video_are_images_of_one_tile(monkeypatch, rng):
    from model.data.video import Video

    _, processor = start()
    frames = [picture(rng) for _ in range(3)]
    monkeypatch.setattr("model.flash.processor.decode_media", lambda _row: [Video(frames, [0.0, 1.0, 2.0], 3.0)])
    row = question_row("v", [], "moves") | {
        "messages": [{"role": "user", "content": "<video>\nWhat?"}, {"role": "assistant", "content": "moves"}]
    }
    sample = processor.sample(row)
    assert tiles_of(processor, sample) == [1, 1, 1]
    collate = consistency_batches(processor, (0.25, 0.0625), 0)
    lay = partial(pad, averaging="sample", pad_id=processor.eos_token_id)
    batches = [collate([sample], [Drawn(step, 0, 0)], lay) for step in range(12)]
    assert len({tuple(batch.inputs.media["compressed"].tolist()) for batch in batches}) > 3


@pytest.mark.parametrize("name", ["warmup", "vico", pytest.param("vico packs", marks=pytest.mark.slow)])
def test_a_stopped_run_continues_bit_for_bit(name, tmp_path):
    changes = flash_on_ranks.CASES[name] or {"micro_batch_size": 4}
    network, state = flash_on_ranks.run(name, changes, tmp_path / "whole")
    again, resumed = stopped_and_resumed(name, changes, tmp_path / "stopped")
    assert resumed.history == state.history
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_accumulation_gives_the_update_of_one_batch_and_the_router_is_left_alone(tmp_path):
    network, state = flash_on_ranks.run("vico", {"steps": 2}, tmp_path / "one by one")
    other, whole = flash_on_ranks.run("vico", {"steps": 2, "micro_batch_size": 4}, tmp_path / "together")
    for ours, theirs in zip(state.history, whole.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)
    assert any("divergence_compressed" in record for record in state.history)
    before = dict(start()[0].named_parameters())
    for (name, a), b in zip(network.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0, msg=name)
    changed = {name.split(".")[0] for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"vision_tower", "multi_modal_projector", "compressed_projector", "language_model"}


def test_a_compressed_answer_comes_closer_to_the_full_one(tmp_path):
    config = settings(steps=10, micro_batch_size=4, learning_rate=3e-3)
    network, processor = start()
    network = deepcopy(network)
    stage = consistency_stage(FrozenReference(deepcopy(network), config), processor, VicoObjective(xi=SMALL), config)
    given = rows()[:4]
    history = train(network, processor, given, stage, config, tmp_path, lambda *_: None).history
    assert history[-1]["divergence_compressed"] < 0.5 * history[0]["divergence_compressed"]


def test_a_warmed_projector_gives_the_means_of_the_rows_it_stands_for(tmp_path):
    network, processor = start()
    network, config = deepcopy(network), settings(steps=20, micro_batch_size=4, learning_rate=5e-3)
    given = [row for row in rows() if row["media"]]
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    history = train(network, processor, given, warmup_stage(), config, tmp_path, lambda *_: None).history
    assert history[-1]["loss"] < 0.4 * history[0]["loss"]
    changed = {name.split(".")[0] for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"compressed_projector"}
    grid = torch.arange(32.0).reshape(1, 16, 2)
    top_left = grid[0, [0, 1, 4, 5]].mean(0)
    assert torch.equal(pooled_rows(grid)[0, 0], top_left)


def test_other_families_are_refused_in_one_line():
    network = SimpleNamespace(config=SimpleNamespace(model_type="qwen3_vl"))
    with pytest.raises(InputError, match=r"^vico: only InternVL models .* family qwen3_vl$"):
        require_flash(network, None, "vico")
