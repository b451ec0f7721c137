"""What benchmarks share: whose turn it is, processes of their own, and mistakes in one line."""

import pytest

from benchmarks import harness
from model.data.errors import InputError


def test_sides_take_turns_at_being_first():
    told = []
    sides = harness.in_turns(3, lambda side: f"{side} {len(told)}", lambda name, found: told.append((name, found)))
    assert [found for _, found in told] == ["ours 0", "peer 1", "peer 2", "ours 3", "ours 4", "peer 5"]
    assert [name for name, _ in told[:3]] == ["round 1: ours", "round 1: peer", "round 2: peer"]
    assert sides == {"ours": ["ours 0", "ours 3", "ours 4"], "peer": ["peer 1", "peer 2", "peer 5"]}


def test_a_fresh_process_is_given_its_job_and_says_why_it_failed(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "example.py").write_text(
        "import json\n"
        "def worker(job_json):\n"
        "    job = json.loads(job_json)\n"
        "    print('noise')\n"
        "    print(json.dumps({'doubled': 2 * job['number']}))\n"
    )
    monkeypatch.setattr(harness, "REPOSITORY", tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert harness.fresh_process("example", "ours", {"number": 4, "long": "x" * 1_000_000}) == {"doubled": 8}
    with pytest.raises(InputError, match=r"^example: the process of peer failed: KeyError: 'number'$"):
        harness.fresh_process("example", "peer", {})


def test_less_memory_than_the_peer_is_a_ratio_above_one(capsys):
    found = harness.compare_memory({"ours": [90.0, 100.0, 300.0], "peer": [150.0]})
    assert found == {"peak_mib": {"ours": 100.0, "peer": 150.0}, "peak_mib_ratio": 1.5}
    assert capsys.readouterr().out == "peak memory: ours 100 MiB, peer 150 MiB\n"


def test_a_mistake_is_one_line_and_status_two(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["example", "--quick"])

    def measure(options):
        assert options.quick
        raise InputError("out/line: no finished line here; run make demo first")

    assert harness.run("An example.\n\nMore.", measure) == 2
    assert capsys.readouterr().err == "out/line: no finished line here; run make demo first\n"
