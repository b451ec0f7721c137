"""Both sides of the benchmark compute the same numbers, and a difference stops it."""

import json

import numpy as np
import pytest

from benchmarks import logprob_memory
from model.data.errors import InputError


def test_both_sides_give_the_same_log_probabilities_and_gradients(tmp_path):
    import torch

    torch.set_num_threads(1)
    for name, chunk in (("ours", 7), ("peer", None)):
        job = {"chunk": chunk, "positions": 40, "path": str(tmp_path / f"{name}.npz"), "vocabulary": 3000, "hidden": 16}
        logprob_memory.worker(json.dumps(job))
    assert max(logprob_memory.difference(tmp_path / "ours.npz", tmp_path / "peer.npz")) < 1e-5
    with np.load(tmp_path / "ours.npz") as ours:
        assert ours["values"].shape == (40,) and np.abs(ours["states"]).max() > 0 and np.abs(ours["head"]).max() > 0


def test_sides_that_differ_give_no_figure(monkeypatch, tmp_path):
    def fake(chunk, _shape, path):
        np.savez(path, values=np.full(3, chunk or 0.0), states=np.ones(3), head=np.ones(3))
        return {"peak_bytes": 1 << 30, "before_bytes": 1 << 20, "seconds": 1.0}

    monkeypatch.setattr(logprob_memory, "measure", fake)
    monkeypatch.setattr("sys.argv", ["logprob_memory", "--quick"])
    with pytest.raises(InputError, match=r"the sides differ by 1\.0e\+03"):
        logprob_memory.main()
