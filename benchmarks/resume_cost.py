"""Seconds to write and to load a training checkpoint, beside one that stores what InternVL's public trainer stores.

Both sides hold the same network (profile ``tiny``), its AdamW moments after real steps, and a packer in the midst of
the same stream: rows of the mix ``text-and-tiles`` as chat rows, tiles of 56 pixels (the network's own), budgets of 96
tiles and 2,400 tokens, which bind as the published ones do. Ours keeps stream positions and sizes. The peer
(``peers/official_checkpoint.py``) keeps one dataloader worker's 20 open buffers as they are after 1,000 packs, about
25 MB; the process stays under 2 GB. ``ratio`` is peer / ours in seconds of write and load together. At this size the
network's part is small. The network is the same on both sides, so with a large one the ratio goes towards 1, and with
every further worker away from it: see the figures under ``computed``, which are computed and not measured.

Ours syncs what it writes to the disk, and its seconds say so; the peer does not, as its trainer does not. How long a
sync of it takes after a write is measured apart and does not count. Both load from the page cache.
"""

import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness, packing_mix
from benchmarks.peers.first_fit import MAX_BUFFER_SIZE, OpenPack, first_fit
from benchmarks.peers.official_checkpoint import buffer_bytes
from benchmarks.resume_sides import Ours, Peer, Scale, prepare
from model.training.config import PackingConfig
from model.training.loop import make_deterministic
from model.training.packing import Packer
from pipelines.profile import load_profile

AIM = 1.0
_ROUNDS, _QUICK_ROUNDS = 15, 5
PUBLISHED_SIDE = 448
PARAMETERS_8B = 8.5e9
"""Of InternVL3.5-8B (arXiv 2508.18265)."""
_STATE_BYTES = 12
"""Of a trained parameter on both sides: weight and two moments in float32."""
MEASURED = Scale(
    rows=1000, max_tokens=2400, max_tiles=96, lookahead=packing_mix.LOOKAHEAD, buffers=MAX_BUFFER_SIZE, warm_packs=1000
)


@dataclass(frozen=True)
class Cost:
    """One checkpoint, written, synced and loaded: seconds of each, and its bytes."""

    write: float
    sync: float
    load: float
    size: int

    @property
    def seconds(self) -> float:
        """Of writing and loading."""
        return self.write + self.load


def main() -> None:
    """Measure, print, store."""
    options = harness.arguments(__doc__.splitlines()[0])
    make_deterministic(threads=1)
    network, rows, processor = prepare(MEASURED.rows, load_profile("tiny").pretrain.model)
    ours, peer = Ours(network, processor, rows, MEASURED), Peer(network, processor, rows, MEASURED)
    peer.take_moments(ours)
    with tempfile.TemporaryDirectory(prefix="fovea-resume-cost-") as scratch:
        costs = compare(ours, peer, Path(scratch), _QUICK_ROUNDS if options.quick else _ROUNDS)
    packs = {"ours": ours.pack_seconds(20), "peer": peer.pack_seconds(20)}
    details = describe(costs, packs, ours, peer)
    spread = {side: [cost.seconds for cost in found] for side, found in costs.items()}
    ratio = statistics.median(theirs / own for own, theirs in zip(spread["ours"], spread["peer"], strict=True))
    measured = harness.result("resume_cost", "s", spread["ours"], spread["peer"], ratio=ratio, aim=AIM, details=details)
    harness.report(measured, options)


def compare(ours: Ours, peer: Peer, scratch: Path, rounds: int) -> dict[str, list[Cost]]:
    """Write, sync and load on both sides, taking turns; one round before them is not counted."""
    costs: dict[str, list[Cost]] = {"ours": [], "peer": []}
    for number in range(rounds + 1):
        step = ours.state.step + number
        for side in sorted(costs, reverse=bool(number % 2)):
            directory = scratch / side
            if side == "ours":
                reader = ours.reader()
                cost = _cost(lambda: ours.write(directory, step), lambda _: ours.load(directory, reader))  # noqa: B023
            else:
                dataset = peer.new_dataset()
                cost = _cost(lambda: peer.write(directory, step), lambda at: peer.load(at, dataset))  # noqa: B023
            costs[side].append(cost)
            print(
                f"round {number} {side}: write {cost.write:.3f} s, load {cost.load:.3f} s, sync {cost.sync:.3f} s, "
                f"{cost.size / 1e6:.1f} MB",
                flush=True,
            )
    return {side: found[1:] for side, found in costs.items()}


def _cost(write: Callable[[], Path], load: Callable[[Path], object]) -> Cost:
    times = [time.perf_counter()]
    checkpoint = write()
    times.append(time.perf_counter())
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    times.append(time.perf_counter())
    load(checkpoint)
    times.append(time.perf_counter())
    written, synced, loaded = (after - before for before, after in itertools.pairwise(times))
    return Cost(written, synced, loaded, sum(path.stat().st_size for path in files))


def describe(costs: dict[str, list[Cost]], packs: dict[str, list[float]], ours: Ours, peer: Peer) -> dict[str, Any]:
    """Everything but the headline, printed as well."""
    held = peer.worker["buffer_list"]
    sizes = {"ours": len(json.dumps(ours.state.packer)), "peer": buffer_bytes(held)}
    details: dict[str, Any] = {"mix": packing_mix.NAME, "scale": asdict(MEASURED), "synced_by": "ours"}
    for side, found in costs.items():
        parts = {name: [round(getattr(cost, name), 5) for cost in found] for name in ("write", "load", "sync")}
        middle = {f"{name}_seconds": round(statistics.median(values), 5) for name, values in parts.items()}
        details[side] = middle | {
            "checkpoint_bytes": found[-1].size,
            "packer_bytes": sizes[side],
            "packer_seconds_per_pack": round(statistics.median(packs[side]), 7),
            "packer_seconds_per_pack_range": [round(f(packs[side]), 7) for f in (min, max)],
            "rounds": parts,
        }
        print(
            f"{side:5} write {middle['write_seconds']:.3f} s, load {middle['load_seconds']:.3f} s, checkpoint "
            f"{found[-1].size / 1e6:.2f} MB, of it packer {sizes[side] / 1e6:.4f} MB; state of the packer for every "
            f"pack {details[side]['packer_seconds_per_pack'] * 1e6:.1f} us"
        )
    tiles = sum(len(buffer["pixel_values"]) for buffer in held)
    details["peer"] |= {"buffers": len(held), "tiles": tiles, "workers": 1}
    details["computed"] = published(details["peer"]["packer_bytes"] / details["peer"]["packer_seconds_per_pack"])
    return details


def published(bytes_per_second: float, count: int = 20_000) -> dict[str, float]:
    """Computed, not measured: the packers' parts at the published budgets and tiles, for one dataloader worker.

    Both packers run over sizes of the mix; bytes are those that tensors of these sizes have.

    Args:
        bytes_per_second: of the peer's deep copy, as measured.
        count: rows of the stream.
    """
    sizes = [row.size for row in packing_mix.rows(count, seed=2)]
    tile = 3 * PUBLISHED_SIDE**2 * 4
    token = 4 * 8  # input_ids, labels, data_index, position_ids
    packs: list[OpenPack] = []
    held = [
        sum(pack.units * tile + pack.tokens * token for pack in packs)
        for _ in first_fit(sizes, packing_mix.MAX_TOKENS, packing_mix.MAX_TILES, open_packs=packs)
    ]
    steady = statistics.mean(held[len(held) // 2 :])
    config = PackingConfig(
        max_tokens=packing_mix.MAX_TOKENS, max_units=packing_mix.MAX_TILES, lookahead=packing_mix.LOOKAHEAD
    )
    packer = Packer(config, sizes.__getitem__, lambda position: position)
    for _ in range(len(held) // 2):
        packer.next()
    found = {
        "peer_most_bytes": MAX_BUFFER_SIZE * (packing_mix.MAX_TILES * tile + packing_mix.MAX_TOKENS * token),
        "peer_mean_bytes_on_the_mix": round(steady),
        "peer_copy_seconds_per_pack_at_the_measured_rate": round(steady / bytes_per_second, 4),
        "our_bytes": len(json.dumps(packer.state())),
        "network_and_moments_bytes_8b": round(PARAMETERS_8B * _STATE_BYTES),
        "workers_whose_buffers_equal_the_8b_network": round(PARAMETERS_8B * _STATE_BYTES / steady, 1),
    }
    print("computed, not measured, at 20 buffers of 96 tiles of 448 pixels, per dataloader worker:")
    for name, value in found.items():
        print(f"  {name:50} {value:,}")
    return found


if __name__ == "__main__":
    main()
