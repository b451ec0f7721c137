"""The training loop: exact resume, accumulation, what trains, what is refused."""

import itertools

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from model.data.errors import InputError
from model.flash.build import build_model
from model.training.attention import use_varlen_attention
from model.training.batches import pack, pad
from model.training.config import PackingConfig, TrainingConfig
from model.training.drop_path import drop_path
from model.training.engine import make_optimizer
from model.training.loop import learning_rate, supervised_loss, supervised_stage, train
from model.training.reader import BatchReader, EpochOrder, sample_of_row
from model.training.stage import Stage, trained_parameters
from tests.tiny import picture, question_row, tiny_config
from tests.tiny_flash import random_flash_model


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(3)
    grids = [[(1, 1)], [(2, 1)], [], [(1, 1), (1, 1)]]
    return [question_row(f"r{i}", [picture(rng, *grid) for grid in grids[i % 4]], "!" * (1 + i % 5)) for i in range(24)]


def settings(**changes) -> TrainingConfig:
    base = {"learning_rate": 1e-3, "steps": 8, "batch_size": 8, "log_every": 1, "checkpoint_every": 3, "threads": 1}
    return TrainingConfig(**(base | {"precision": "float32"} | changes))


def run(tokenizer, rows, config, state_dir, stop_at=None):
    model, processor = build_model(tiny_config(), tokenizer, seed=0)

    def progress(label, done, total):
        if done == stop_at:
            raise KeyboardInterrupt

    state = train(model, processor, rows, supervised_stage("sft", config), config, state_dir, progress)
    return model, state


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stop_at", [2, 3, 7])
def test_a_stopped_run_continues_bit_for_bit(tokenizer, rows, tmp_path, precision, stop_at):
    config = settings(precision=precision, drop_path_rate=0.2, jpeg_quality=(75, 100))
    model, state = run(tokenizer, rows, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, rows, config, tmp_path / "stopped", stop_at=stop_at)
    again, resumed = run(tokenizer, rows, config, tmp_path / "stopped")
    assert resumed.history == state.history
    assert [record["step"] for record in state.history] == list(range(1, 9))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_run_with_steps_of_text_alone_continues_bit_for_bit(tokenizer, rows, tmp_path):
    """Such a step moves the vision half by its momentum, and counts for it."""
    given, config = [*rows[:2], *rows[2::4]], settings(batch_size=1)
    model, state = run(tokenizer, given, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, given, config, tmp_path / "stopped", stop_at=7)
    again, resumed = run(tokenizer, given, config, tmp_path / "stopped")
    assert resumed.history == state.history
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_rows_of_text_teach_a_projector_nothing(tokenizer, rows, tmp_path):
    config = settings(train="projector", batch_size=2, micro_batch_size=1, text_to_multimodal=(1, 1))
    _, mixed = run(tokenizer, rows, config, tmp_path / "mixed")
    assert all(record["grad_norm"] > 0 for record in mixed.history)
    _, alone = run(tokenizer, rows[2::4], settings(train="projector"), tmp_path / "alone")
    assert all(record["grad_norm"] == 0 for record in alone.history)


def test_a_resumed_optimiser_follows_the_model_to_where_it_trains(tokenizer, rows, tmp_path, monkeypatch):
    """Another type of number stands for another device."""
    monkeypatch.setattr(Accelerator, "prepare", lambda self, module: module.double())
    _, state = run(tokenizer, rows, settings(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, rows, settings(), tmp_path / "stopped", stop_at=4)
    _, resumed = run(tokenizer, rows, settings(), tmp_path / "stopped")
    assert resumed.history == state.history


def test_a_finished_run_is_not_trained_again(tokenizer, rows, tmp_path):
    _, first = run(tokenizer, rows, settings(), tmp_path)
    _, second = run(tokenizer, rows, settings(), tmp_path, stop_at=7)
    assert second.history == first.history


def test_half_a_checkpoint_is_ignored(tokenizer, rows, tmp_path):
    _, whole = run(tokenizer, rows, settings(), tmp_path / "whole")
    partial = tmp_path / "state" / ".checkpoint-00000003.tmp"
    partial.mkdir(parents=True)
    (partial / "part-00000.safetensors").write_bytes(b"half")
    _, state = run(tokenizer, rows, settings(), tmp_path / "state")
    assert state.history == whole.history


def test_a_stopped_run_of_packs_continues_bit_for_bit(tokenizer, rows, tmp_path):
    """The packer's window lies across the checkpoint, and text-only rows are mixed in at their ratio."""
    packing = PackingConfig(max_tokens=400, max_units=9, lookahead=7)
    config = settings(batch_size=2, packing=packing, text_to_multimodal=(1, 2), drop_path_rate=0.2)
    model, state = run(tokenizer, rows, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, rows, config, tmp_path / "stopped", stop_at=4)
    again, resumed = run(tokenizer, rows, config, tmp_path / "stopped")
    assert resumed.history == state.history
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_checkpoint_of_padded_rows_is_refused_for_packs(tokenizer, rows, tmp_path):
    run(tokenizer, rows, settings(steps=1), tmp_path)
    with pytest.raises(InputError, match=r"another setting of training\.packing"):
        run(tokenizer, rows, settings(steps=2, packing=PackingConfig(max_tokens=600, max_units=9)), tmp_path)


def test_a_packed_step_has_the_loss_and_the_gradient_of_its_rows(tiny_model, rows):
    """One pack, and the same rows each alone: the same loss, the same gradients."""
    model, processor = tiny_model
    samples = [sample_of_row(processor, row) for row in rows[:7]]
    alone = [pad([sample], "square", processor.eos_token_id) for sample in samples]
    denominator = float(sum(batch.weights.sum() for batch in alone))

    def gradients(batches):
        model.zero_grad()
        total = sum(supervised_loss(model, batch, denominator) for batch in batches)
        total.backward()
        return total.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected, expected_gradient = gradients(alone)
    with use_varlen_attention(model.language_model):
        loss, gradient = gradients([pack(samples, "square")])
    model.zero_grad()
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, value in expected_gradient.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_accumulation_does_not_change_the_loss_or_the_update(tokenizer, rows, tmp_path, micro):
    whole, expected = run(tokenizer, rows, settings(steps=3), tmp_path / "whole")
    parts, state = run(tokenizer, rows, settings(steps=3, micro_batch_size=micro), tmp_path / "parts")
    losses = [[record["loss"] for record in s.history] for s in (expected, state)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=0)


def test_the_loss_falls(tokenizer, rows, tmp_path):
    _, state = run(tokenizer, rows, settings(steps=40, learning_rate=3e-3), tmp_path)
    assert state.history[-1]["loss"] < 0.5 * state.history[0]["loss"]


def test_projector_warm_up_moves_the_projector_alone(tokenizer, rows, tmp_path):
    before, _ = build_model(tiny_config(), tokenizer, seed=0)
    after, _ = run(tokenizer, rows, settings(steps=2, train="projector"), tmp_path)
    moved = {
        name
        for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert moved
    assert all(name.startswith("multi_modal_projector.") for name in moved)


def test_parts_may_have_rates_of_their_own(tokenizer, rows, tmp_path):
    """AdamW's first update is its rate, whatever the gradient; half of it for half the rate."""
    before, _ = build_model(tiny_config(), tokenizer, seed=0)
    config = settings(steps=1, weight_decay=0.0, vision_learning_rate=5e-4, projector_learning_rate=2e-3)
    after, _ = run(tokenizer, rows, config, tmp_path)
    for part, rate in (("vision_tower", 5e-4), ("multi_modal_projector", 2e-3), ("language_model", 1e-3)):
        name = next(n for n, p in after.named_parameters() if n.startswith(part) and n.endswith("weight"))
        moved = (after.get_parameter(name) - before.get_parameter(name)).abs().max().item()
        assert moved == pytest.approx(rate, rel=0.02), name


@pytest.mark.parametrize(("own", "scale"), [(5e-3, 5.0), (None, 2.0)])
def test_the_second_projector_may_have_a_rate_of_its_own_or_has_the_projectors(tokenizer, own, scale):
    network, _ = random_flash_model(tokenizer)
    config = settings(projector_learning_rate=2e-3, compressed_learning_rate=own)
    found = {id(p): group["scale"] for group in make_optimizer(network, config).param_groups for p in group["params"]}
    parts = (network.compressed_projector, network.multi_modal_projector, network.router)
    for part, wanted in zip(parts, (scale, 2.0, 1.0), strict=True):
        assert [found[id(p)] for p in part.parameters()] == pytest.approx([wanted] * len(list(part.parameters())))


def test_only_the_answer_and_its_terminator_train(tiny_model, rows):
    _, processor = tiny_model
    sample = sample_of_row(processor, rows[4])
    trained = [i for i, flag in zip(sample.input_ids, sample.trained, strict=True) if flag]
    assert processor.tokenizer.decode(trained, skip_special_tokens=False) == "!!!!!<|im_end|>"
    batch = pad([sample], "square", processor.eos_token_id)
    assert batch.targets.tolist() == trained
    assert trained[0] == 0, "token id 0 is a target like any other"


def test_a_wrong_position_is_never_kept(tiny_model, rows):
    """The position before each target predicts it, in padded batches too."""
    _, processor = tiny_model
    batch = pad([sample_of_row(processor, row) for row in rows[:6]], "token", processor.eos_token_id)
    following = batch.inputs.ids.flatten()[batch.inputs.keep + 1]
    assert torch.equal(following, batch.targets)


def test_every_row_is_seen_once_an_epoch_and_the_order_is_a_function_of_the_position():
    order = EpochOrder(rows=10, seed=1)
    first = [order.at(position) for position in range(20)]
    assert sorted(first[:10]) == sorted(first[10:]) == list(range(10))
    assert first[:10] != first[10:]
    assert [EpochOrder(10, 1).at(position) for position in (12, 9, 13)] == [first[12], first[9], first[13]]


@pytest.mark.parametrize("packing", [None, PackingConfig(max_tokens=600, max_units=12, lookahead=8)])
def test_ranks_share_a_step_without_overlap(tiny_model, rows, packing):
    _, processor = tiny_model

    def shares(ranks):
        readers = [BatchReader(rows, processor, settings(packing=packing), ranks=ranks, rank=r) for r in range(ranks)]
        return [[row for batch in reader.reading(0).batches for row in batch.row_ids] for reader in readers]

    (whole,), halves = shares(1), shares(2)
    assert sorted(halves[0] + halves[1]) == sorted(whole)
    assert all(halves)


def test_learning_rate_warms_up_and_ends_at_its_floor():
    config = settings(steps=100, learning_rate=1.0, warmup_ratio=0.1, min_learning_rate_ratio=0.1)
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_schedule_is_that_of_transformers():
    from transformers import get_cosine_schedule_with_warmup

    config = settings(steps=50, learning_rate=1.0, warmup_ratio=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 5, 50)
    # transformers starts at 0, a step that trains nothing; ours starts one later and agrees from the peak on.
    theirs = []
    for _ in range(50):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [learning_rate(config, step) for step in range(5, 50)] == pytest.approx(theirs[5:])


def test_stochastic_depth_drops_branches_in_training_only(tiny_model):
    model, _ = tiny_model
    tower = model.vision_tower
    pixels = torch.randn(6, 3, 56, 56)
    with torch.no_grad():
        plain = tower(pixel_values=pixels).last_hidden_state
        with drop_path(model, 0.9):
            assert torch.equal(tower(pixel_values=pixels).last_hidden_state, plain)
            tower.train()
            dropped = tower(pixel_values=pixels).last_hidden_state
            tower.eval()
        assert torch.equal(tower(pixel_values=pixels).last_hidden_state, plain)
    assert not torch.equal(dropped, plain)


def test_a_diverged_loss_stops_and_names_the_rows(tokenizer, rows, tmp_path):
    with pytest.raises(InputError, match=r"loss is nan at step .*rows r"):
        run(tokenizer, rows, settings(learning_rate=1e30, grad_clip=1e30, steps=8), tmp_path)


def test_any_seed_will_do(tokenizer, rows, tmp_path):
    _, state = run(tokenizer, rows, settings(seed=2**32, steps=1), tmp_path)
    assert state.step == 1


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_a_weight(tokenizer, rows, tmp_path):
    def loss(model, batch, denominator):
        parameter = next(model.parameters())
        # Zero, with a derivative that is not a number.
        return supervised_loss(model, batch, denominator) + (parameter - parameter.detach()).abs().sqrt().sum()

    model, processor = build_model(tiny_config(), tokenizer, seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stage = Stage("sft", loss, trained_parameters(settings()))
    with pytest.raises(InputError, match=r"sft: norm of the gradient is nan at step 0; rows r"):
        train(model, processor, rows, stage, settings(), tmp_path, lambda *_: None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_row_without_an_answer_is_refused_by_name(tokenizer, rows, tmp_path):
    row = rows[0] | {"id": "mute", "messages": rows[0]["messages"][:1]}
    with pytest.raises(InputError, match="row mute: no assistant answer"):
        run(tokenizer, [row], settings(batch_size=1), tmp_path)


def test_a_row_that_is_too_long_is_refused_by_name(tokenizer, rows, tmp_path):
    with pytest.raises(InputError, match=r"training\.max_tokens is 20"):
        run(tokenizer, rows, settings(max_tokens=20), tmp_path)


def test_a_row_that_no_pack_holds_is_refused_by_name(tokenizer, rows, tmp_path):
    with pytest.raises(InputError, match=r"row r\d+: \d+ tokens; training\.packing\.max_tokens is 30"):
        run(tokenizer, rows, settings(packing=PackingConfig(max_tokens=30, max_units=9)), tmp_path)


def test_a_ratio_without_rows_of_a_kind_is_refused(tokenizer, rows, tmp_path):
    shown = [row for row in rows if row["media"]]
    with pytest.raises(InputError, match=r"the ratio 2 : 5 asks for text-only rows, and there are none"):
        run(tokenizer, shown, settings(text_to_multimodal=(2, 5)), tmp_path)


def test_an_empty_dataset_is_refused(tokenizer, tmp_path):
    with pytest.raises(InputError, match="no rows"):
        run(tokenizer, [], settings(), tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tokenizer, rows, tmp_path):
    run(tokenizer, rows, settings(steps=1), tmp_path)
    model, processor = build_model(tiny_config(num_hidden_layers=1), tokenizer, seed=0)
    config = settings(steps=2)
    with pytest.raises(InputError, match="belongs to another model"):
        train(model, processor, rows, supervised_stage("sft", config), config, tmp_path, lambda *_: None)
