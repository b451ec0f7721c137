"""Peak memory of token log-probabilities taken chunk by chunk, beside [positions, vocabulary] at once.

Both sides compute log softmax(head(states))[targets] of the same numbers, forward and backward, in float32 on a CPU or
a GPU, each in a fresh process; rounds take turns. Ours is ``model.objectives.log_probability`` at the default chunk of
training; the peer is the usual form, ``log_softmax`` and ``gather``. The shape is the head of Qwen3-0.6B (and of
InternVL3.5-1B): 151,936 tokens, hidden 1,024, at 8,192 positions, half of what a pair of MPO may have; ``--quick``
takes half of the positions and a quarter of the width. Log-probabilities and gradients of both sides must agree to
1e-4. Peak memory is the resident set of the whole process on a CPU (torch, the head, its gradient and the next piece of
that gradient are in it, on both sides), allocated memory on a GPU.
"""

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.train_step import peak_bytes
from model.data.errors import InputError
from model.training.config import TrainingConfig

AIM = 2.0


@dataclass(frozen=True)
class Shape:
    """How many positions, and the width of their states."""

    positions: int
    hidden: int


FULL, QUICK = Shape(8192, 1024), Shape(4096, 256)
VOCABULARY = 151_936
TOLERANCE = 1e-4
DEFAULT_CHUNK: int = TrainingConfig.model_fields["loss_chunk"].default
SMALL_CHUNK = 256


def main() -> None:
    """Measure, compare, print, store."""
    options = harness.arguments(__doc__.splitlines()[0])
    shape, rounds = (QUICK, 2) if options.quick else (FULL, 3)
    sides = {"peer": None, "ours": DEFAULT_CHUNK}
    with tempfile.TemporaryDirectory(prefix="fovea-logprob-") as scratch:
        at = Path(scratch)
        found = harness.in_turns(rounds, lambda side: measure(sides[side], shape, at / f"{side}.npz"), _print)
        error = difference(at / "ours.npz", at / "peer.npz")
        small = measure(SMALL_CHUNK, shape, at / "small.npz")
        _print(f"chunks of {SMALL_CHUNK}", small)
    ours, peer = ([run["peak_bytes"] / 2**20 for run in found[side]] for side in ("ours", "peer"))
    print(f"largest difference: log-probability {error[0]:.1e}, gradient {error[1]:.1e} of its largest value")
    if max(error) > TOLERANCE:
        raise InputError(f"logprob_memory: the sides differ by {max(error):.1e}, more than {TOLERANCE}")
    details = {
        **asdict(shape),
        "vocabulary": VOCABULARY,
        "chunk": DEFAULT_CHUNK,
        "largest_difference": {"log_probability": error[0], "gradient_relative": error[1]},
        "seconds": {side: round(harness.median([run["seconds"] for run in runs]), 2) for side, runs in found.items()},
        "before_mib": round(found["ours"][0]["before_bytes"] / 2**20, 1),
        f"chunk_{SMALL_CHUNK}": {"mib": round(small["peak_bytes"] / 2**20, 1), "seconds": round(small["seconds"], 2)},
    }
    ratio = harness.median(peer) / harness.median(ours)
    harness.report(harness.result("logprob_memory", "MiB", ours, peer, ratio=ratio, aim=AIM, details=details), options)


def measure(chunk: int | None, shape: Shape, path: Path) -> dict[str, Any]:
    """One side in a fresh process: its seconds and bytes; log-probabilities and gradients go to ``path``.

    Raises:
        InputError: the process failed; its last line says why.
    """
    job = {"chunk": chunk, "path": str(path), "vocabulary": VOCABULARY, **asdict(shape)}
    return harness.fresh_process("logprob_memory", path.stem, job)


def worker(job_json: str) -> None:
    """A side's process: forward and backward once, and seconds and bytes as one last line."""
    import numpy as np
    import torch

    from model.objectives.log_probability import token_log_probabilities

    job = json.loads(job_json)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(job["hidden"], job["vocabulary"], bias=False)
    with torch.no_grad():
        head.weight.normal_(0, 0.1, generator=generator)
    head.to(device)
    states_MD = torch.randn(job["positions"], job["hidden"], generator=generator).to(device).requires_grad_()
    targets_M = torch.randint(job["vocabulary"], (job["positions"],), generator=generator).to(device)
    before, started = peak_bytes(), time.perf_counter()
    if job["chunk"] is None:
        chosen_M = head(states_MD).log_softmax(-1).gather(-1, targets_M[:, None])[:, 0]
    else:
        chosen_M = token_log_probabilities(states_MD, head, targets_M, job["chunk"])
    # As after a policy gradient: every position has a weight of its own.
    weights_M = torch.linspace(-1, 1, job["positions"], device=device)
    (chosen_M * weights_M).sum().backward()
    values = chosen_M.detach().cpu()
    record = {"seconds": time.perf_counter() - started, "peak_bytes": peak_bytes(), "before_bytes": before}
    sampled = head.weight.grad[:: max(1, job["vocabulary"] // 512)]
    np.savez(job["path"], values=values.numpy(), states=states_MD.grad.cpu().numpy(), head=sampled.cpu().numpy())
    print(json.dumps(record))


def difference(one: Path, other: Path) -> tuple[float, float]:
    """Largest differences of two sides: of log-probabilities, and of gradients relative to their largest value."""
    import numpy as np

    with np.load(one, allow_pickle=False) as ours, np.load(other, allow_pickle=False) as peer:
        values = float(np.abs(ours["values"] - peer["values"]).max())
        gradients = [
            float(np.abs(ours[name] - peer[name]).max() / np.abs(peer[name]).max()) for name in ("states", "head")
        ]
    return values, max(gradients)


def _print(name: str, run: dict[str, Any]) -> None:
    print(f"{name:24} {run['peak_bytes'] / 2**20:8.0f} MiB   {run['seconds']:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
