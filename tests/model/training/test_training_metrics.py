"""Clocked steps: FLOPs against a counter of real operations, times against a clock by hand, and what is never kept."""

import json
import os
import signal
import threading

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.families.interface import Inputs
from model.families.opening import load_network, load_processor
from model.training import flops, stopping
from model.training.attention import set_attention
from model.training.flops import StepCost, peak_flops, step_cost
from model.training.metrics import TrainingMetrics
from tests.tiny import TILE, picture, question_row, random_model
from tests.tiny_qwen import save_stock

CPU = torch.device("cpu")
TOKENS, TARGETS, TILES = 80, 7, 2
ROWS_PER_TILE = 16


@pytest.fixture(scope="module")
def network(tokenizer):
    """Large enough for what the formula leaves out (the image needs no gradient) to be little."""
    network, _ = random_model(tokenizer)
    set_attention(network, "eager")
    return network


def counted(network) -> int:
    """FLOPs that PyTorch counts in one forward and backward pass of a sample with two tiles."""
    ids = torch.full((1, TOKENS), 5)
    ids[0, 3 : 3 + TILES * ROWS_PER_TILE] = network.config.image_token_id
    tiles = torch.zeros(TILES, TILE, TILE, 3, dtype=torch.uint8)
    keep = torch.arange(TOKENS - TARGETS, TOKENS)
    with FlopCounterMode(display=False) as counter:
        hidden = network.hidden(Inputs(ids, torch.ones_like(ids), None, None, {"tiles": tiles}, False, keep))
        network.head(hidden.states).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("trained", [("vision", "projector", "language"), ("projector",), ("language",)])
def test_the_flops_of_a_step_are_those_of_its_operations(network, trained):
    network.requires_grad_(False)
    for parameter in network.parts().parameters(*trained):
        parameter.requires_grad_(True)
    cost = step_cost(network)
    # The counter sees every pair of eager attention, the formula the causal ones.
    above_diagonal = TOKENS * (TOKENS - 1) / 2 * cost.per_pair
    ours = cost.step(tokens=TOKENS, targets=TARGETS, units=TILES, rows=1) + above_diagonal
    assert ours == pytest.approx(counted(network), rel=0.03)


@pytest.mark.parametrize("generation", ["qwen2_vl", "qwen3_vl_moe"])
def test_the_flops_of_a_qwen_are_those_of_its_operations(generation, tmp_path, rng):
    save_stock(generation, tmp_path)
    network, processor = load_network(tmp_path, attention="eager"), load_processor(tmp_path)
    network.model.set_experts_implementation("eager")  # the counter knows no grouped product
    sample = processor.sample(question_row("r", [picture(rng, 2, 2)], "an answer"))
    tokens, targets = len(sample.input_ids), sum(sample.trained)
    ids, media = torch.tensor([sample.input_ids]), {n: torch.from_numpy(a) for n, a in sample.media.items()}
    positions, keep = torch.from_numpy(sample.positions)[:, None], torch.arange(tokens - targets, tokens)
    network.train().requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        hidden = network.hidden(Inputs(ids, torch.ones_like(ids), positions, None, media, False, keep))
        network.head(hidden.states).sum().backward()
    cost = step_cost(network)
    above_diagonal = tokens * (tokens - 1) / 2 * cost.per_pair
    ours = cost.step(tokens=tokens, targets=targets, units=sample.units, rows=1) + above_diagonal
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_the_formula_by_hand(network):
    """Every number from the shapes in tests/tiny.py."""
    network.requires_grad_(True)
    cost = step_cost(network)
    language_layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128  # q, k and v of one head, o, the gated MLP
    assert cost.per_token == 6 * 2 * language_layer
    assert cost.per_target == 6 * 64 * network.config.text_config.vocab_size
    assert cost.per_pair == 3 * 4 * 2 * 2 * 32  # layers, heads, width of a head
    tower = 7 * 7 * 3 * 64 + 2 * (4 * 64 * 64 + 2 * 64 * 128)
    projector = 256 * 64 + 64 * 64
    assert cost.per_unit == 6 * (65 * tower + 16 * projector) + 3 * 4 * 2 * 64 * 65**2


def test_a_token_visits_few_experts_and_a_window_is_not_counted():
    from types import SimpleNamespace

    text = SimpleNamespace(num_experts=8, num_experts_per_tok=2)
    assert flops._share_of_experts(text) == 0.25
    assert flops._share_of_experts(SimpleNamespace()) == 1
    experts = torch.nn.ModuleDict({"experts": torch.nn.Linear(10, 10, bias=False), "gate": torch.nn.Linear(10, 8)})
    layer = torch.nn.ModuleDict({"mlp": experts})
    assert flops._weights([layer], True, (), 0.25) == 6 * (100 * 0.25 + 80)


def test_qwen_counts_merged_patches():
    from types import SimpleNamespace

    config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2))
    assert flops._positions(config) == (4, 1)
    assert flops._tile_attention(config, 4, True) == 0


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_gpu_has_the_peak_of_its_data_sheet_or_none(monkeypatch, name, tera):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0)) == (tera and tera * 1e12)
    assert peak_flops(CPU) is None


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


STEP = {"step": 1, "loss": 2.5, "grad_norm": 0.5, "learning_rate": 1e-3}
WORK = {"tokens": 800, "positions": 1000, "units": 4, "rows": 8, "targets": 100}


def test_a_record_says_what_a_step_took():
    clock, records = Clock(), []
    metrics = TrainingMetrics(records.append, None, CPU, stage="sft", steps=9, clock=clock)
    clock.now += 1
    metrics.data_ready()
    clock.now += 3
    metrics.step_done(**STEP, **WORK)
    clock.now += 60
    metrics.restart()  # a checkpoint
    clock.now += 2
    metrics.step_done(**(STEP | {"step": 2}), **WORK)
    first, second = records
    assert first | STEP == first and (first["stage"], first["steps"]) == ("sft", 9)
    assert (first["seconds"], first["data_wait_seconds"], first["tokens_per_second"]) == (4, 1, 200)
    assert first["padding_share"] == pytest.approx(0.2)
    assert first["mfu"] is None, "a CPU has no peak"
    assert 10 << 20 < first["memory_bytes"] < 1 << 40
    assert (second["seconds"], second["data_wait_seconds"]) == (2, 0)
    json.dumps(records, allow_nan=False)


def test_mfu_is_the_share_of_the_peak_of_all_gpus(monkeypatch):
    monkeypatch.setattr("model.training.metrics.peak_flops", lambda device: 1000.0)
    clock, records = Clock(), []
    cost = StepCost(per_token=1.0, per_target=2.0, per_pair=0.0, per_unit=100.0)
    metrics = TrainingMetrics(records.append, cost, CPU, stage="sft", steps=9, ranks=2, clock=clock)
    clock.now += 2
    metrics.step_done(**STEP, **WORK)
    assert records[0]["mfu"] == (800 + 2 * 100 + 4 * 100) / (2 * 2 * 1000)


def test_sigterm_is_noted_while_training_and_the_old_handler_comes_back():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("old"))
    try:
        with pytest.raises(stopping.Stopped), stopping.watch():
            assert not stopping.stop_requested()
            os.kill(os.getpid(), signal.SIGTERM)
            with stopping.watch():
                assert stopping.stop_requested(), "a watch in a watch forgets nothing"
            raise stopping.Stopped("after step 1")
        assert seen == [], "the block answered it"
        with stopping.watch():
            assert not stopping.stop_requested(), "every watch begins anew"
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == ["old"], "a request that nobody answered goes to who was there before"
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == ["old", "old"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_thread_that_is_not_the_main_one_watches_nothing():
    before, failed = signal.getsignal(signal.SIGTERM), []

    def work():
        try:
            with stopping.watch():
                failed.append(signal.getsignal(signal.SIGTERM) is not before)
        except ValueError:
            failed.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == [False]
