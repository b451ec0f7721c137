"""Both sides of the benchmark train on the same tokens, from the same loss; its readings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import harness, train_step
from benchmarks.train_step import Measurement, Prepared, Shape, measure, padded, prepare, train_ours, training
from components.collect.digits import FAMILIES, digit_rows
from model.data.errors import InputError
from model.data.shards import open_dataset
from pipelines.profile import load_profile

ROWS = 2 * len(FAMILIES)
SMALL = Shape("micro", {}, ROWS, "sdpa")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The network of the profile ``micro``, and the rows of exactly one step."""
    torch.set_num_threads(1)
    return prepare(SMALL, 1, tmp_path_factory.mktemp("train_step"))


def test_the_peer_trains_on_our_tokens_and_starts_from_our_loss(prepared):
    from benchmarks.peers import hf_trainer

    rows = list(open_dataset(prepared.rows).rows())
    assert len(rows) == ROWS
    config = training(SMALL, prepared, 1, precision="float32", threads=1, **padded(SMALL))
    (ours,) = train_ours(prepared.model, rows, config)
    (peer,) = hf_trainer.train(prepared.model, rows, config)
    assert (ours["tokens"], ours["targets"]) == (peer["tokens"], peer["targets"])
    assert ours["loss"] == pytest.approx(peer["loss"], rel=1e-4)


def test_a_process_reports_its_steps_and_its_peak(monkeypatch, prepared):
    steps = [{"tokens": 10, "targets": 2, "seconds": s, "mfu": m} for s, m in ((9, 0.9), (9, 0.9), (9, 0.9))]
    steps += [
        {"tokens": 10, "targets": 2, "seconds": 2, "mfu": 0.25},
        {"tokens": 30, "targets": 6, "seconds": 2, "mfu": 0.35},
    ]
    steps += [{"tokens": 10, "targets": 2, "seconds": 99, "mfu": 0.0}]
    done = subprocess.CompletedProcess([], 0, "noise\n" + json.dumps({"steps": steps, "peak_bytes": 3 << 20}), "")
    monkeypatch.setattr(harness.subprocess, "run", lambda *_, **__: done)
    found = measure("ours", prepared, training(SMALL, prepared, 6))
    assert found == Measurement(10.0, 3.0, pytest.approx(0.3), 80, 16), "warm-up and the last step do not count"


def test_the_peer_gets_as_many_rows_as_a_pack_holds(monkeypatch, prepared):
    jobs = []

    def run(command, *, input, **_):
        jobs.append(json.loads(input))
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nout of memory")

    monkeypatch.setattr(harness.subprocess, "run", run)
    with pytest.raises(InputError, match="process of peer failed: out of memory"):
        measure("peer", prepared, training(SMALL, prepared, 6))
    config = json.loads(jobs[0]["config"])
    assert (config["packing"], config["batch_size"]) == (None, ROWS)


@pytest.mark.slow
def test_the_peak_of_a_child_is_its_own_not_that_of_its_parent():
    ballast = bytearray(400 << 20)
    script = "from benchmarks.train_step import resident_peak; print(resident_peak())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 5 << 20 < int(done.stdout) < len(ballast)


def test_options_are_compared_with_the_run_they_change(monkeypatch, prepared):
    asked = []

    def fake(_side, source, config):
        asked.append((source, config))
        return Measurement(100.0 + len(asked), 50.0 * len(asked), None, 0, 0)

    monkeypatch.setattr(train_step, "measure", fake)
    table = train_step.option_table(SMALL, prepared, 6, compiled=True)
    assert (table[0]["option"], table[0]["against"]) == ("packs", "padded rows")
    assert table[0]["speed_ratio"] == round(101 / 102, 4)
    assert {row["against"] for row in table[1:]} == {"packs"}
    assert {config.activation_checkpointing for _, config in asked} == {"none", "language", "vision", "all"}
    assert [config.compile for _, config in asked].count(True) == 1


def test_answers_are_long_where_the_loss_is_compared(monkeypatch, tmp_path):
    configs = []

    def fake(_side, prepared, config):
        configs.append(config)
        assert prepared.tokens > 100
        return Measurement(100.0, 50.0 / len(configs), None, 0, 0)

    monkeypatch.setattr(train_step, "measure", fake)
    (row,) = train_step.loss_table(train_step.LONG_ANSWERS, tmp_path, 2048)
    assert [config.loss_chunk for config in configs] == [1 << 30, 128]
    assert row["peak_mib_saved"] == 25


def test_the_gpu_shape_is_that_of_the_published_model_on_images_of_several_tiles():
    digits = train_step.digits_of(train_step.GPU, 1)
    rows = list(digit_rows(digits)[0])
    assert {medium["width"] for row in rows for medium in row["media"]} <= {896, 1792}
    config = training(train_step.GPU, Prepared(Path(), Path(), 2000.0, 9), 5)
    assert config.packing.max_tokens == 2000 * train_step.GPU.rows_in_step
    language = train_step._random_weights(load_profile(train_step.GPU.profile).pretrain.model, None).language
    assert (language.hidden_size, language.num_hidden_layers, language.vocab_size) == (1024, 28, 151936)
