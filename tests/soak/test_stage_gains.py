"""What the cascade gives and what routing keeps, with three seeds: dated results in out/soak, from a finished demo."""

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import cascade, flash_retention, mpo_length, tiny_stability
from benchmarks.harness import report

pytestmark = pytest.mark.soak
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def line(monkeypatch):
    found = REPOSITORY / "out" / "line"
    if not (found / "route" / "model").is_dir():
        pytest.skip(f"{found}: no finished line; run make demo first")
    monkeypatch.chdir(REPOSITORY)
    return found


def stored(measured):
    report(measured, Namespace(write=True, json=False), results=REPOSITORY / "out" / "soak")
    return measured.details


def test_no_arm_of_the_cascade_falls_below_its_start(line):
    details = stored(cascade.measure(False, line))
    assert details["seeds"] == [0, 1, 2]
    for arm, entry in details["arms"].items():
        assert entry["over_start"]["high"] >= 0, f"{arm} is worse than where it started"


def test_the_cascade_of_the_demo_is_stable_over_three_seeds(line):
    details = stored(tiny_stability.measure(False, line))
    assert details["seeds"] == [0, 1, 2]
    for stage, entry in details["stages"].items():
        assert entry["over_start"]["high"] >= 0, f"{stage}, the model is worse than before"


def test_a_constant_length_keeps_what_the_answers_own_lengths_lose(line):
    details = stored(mpo_length.measure(False, line))
    assert details["arms"][mpo_length.CONSTANT]["over_start"]["high"] >= 0
    assert details["over_own"]["low"] > 0


def test_routing_keeps_more_than_random_tiles_and_than_everything_compressed(line):
    details = stored(flash_retention.measure(False, line))
    assert details["rows"] >= 10_000
    assert len(details["seeds"]) == 3
    for table in details["seeds"]:
        for other in ("random", "compress everything"):
            assert table["router"][f"over {other}"]["low"] > 0, other
