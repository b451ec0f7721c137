"""Both sides of the benchmark train on the same pairs in the same order from the same loss; its readings."""

import json
import subprocess

import pytest
import torch

from benchmarks import harness, mpo_step
from benchmarks.mpo_step import PAIRS_IN_STEP, measure, paired, prepare, rows_in_order, settings, train_ours
from benchmarks.train_step import digits_of
from components.collect.digits import digit_rows
from model.data.errors import InputError
from model.data.shards import open_dataset
from model.objectives.config import MpoObjective


@pytest.mark.slow
def test_the_peer_starts_from_our_loss(tmp_path):
    from benchmarks.peers import trl_dpo

    torch.set_num_threads(1)
    directory = prepare(1, tmp_path)
    rows = list(open_dataset(directory / "rows").rows())
    config = settings(1, precision="float32", attention="sdpa", threads=1)
    (ours,), seconds = train_ours(directory / "model", rows, config)
    (peer,) = trl_dpo.train(directory / "model", rows_in_order(rows, config), config, MpoObjective())
    assert ours["loss"] == pytest.approx(peer["loss"], abs=1e-4)
    assert seconds >= 0


def test_chosen_answers_are_equally_long_and_rejected_ones_are_not():
    rows = [paired(row) for row in digit_rows(digits_of(mpo_step.SHAPE, 20))[0]]
    assert {len(row["chosen"].split()) for row in rows} == {40}
    assert len({len(row["rejected"].split()) for row in rows}) > 5
    assert all(row["chosen"] != row["rejected"] for row in rows)
    assert {row["media"][0]["width"] for row in rows} == {168, 336}


def test_the_peer_takes_the_pairs_of_our_steps():
    from model.training.reader import row_order

    rows, config = [{"id": str(i), "media": []} for i in range(2 * PAIRS_IN_STEP)], settings(2)
    order = row_order(rows, config)
    assert [row["id"] for row in rows_in_order(rows, config)] == [str(order(i)) for i in range(len(rows))]


def test_the_reference_counts_once_an_epoch(monkeypatch, tmp_path):
    steps = [{"seconds": s, "loss": 6.0 + s} for s in (9, 9, 9, 2, 2, 99)]
    said = {"steps": steps, "reference_seconds": 12.0, "peak_bytes": 3 << 20}
    done = subprocess.CompletedProcess([], 0, "noise\n" + json.dumps(said), "")
    monkeypatch.setattr(harness.subprocess, "run", lambda *_, **__: done)
    found = measure("ours", tmp_path, settings(6))
    assert found.cached == pytest.approx(PAIRS_IN_STEP / 2), "warm-up and the last step do not count"
    assert found.speed == pytest.approx(PAIRS_IN_STEP / (2 + 12 / 6))
    assert (found.peak_mib, found.first_loss) == (3, 15)


def test_a_process_that_fails_says_why(monkeypatch, tmp_path):
    done = subprocess.CompletedProcess([], 1, "", "Traceback\nout of memory")
    monkeypatch.setattr(harness.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(InputError, match="process of peer failed: out of memory"):
        measure("peer", tmp_path, settings(6))
