"""How full packs are, and how fast they train, on a named mix of text-only rows and images of 1 to 13 tiles.

Fill: share of the token budget that holds tokens, at the published budgets (32,768 tokens, 96 tiles), of our packer and
of first-fit as InternVL's trainer does it (``peers/first_fit.py``), on the same stream of ``packing_mix`` rows.

Speed: tokens/s of real training steps on the same rows and network, packed and otherwise (``packing_speed``). ``peer``
is length-bucketed: batches of equally many rows, sorted by length within windows as long as the packer's; ``ratio`` is
packed / bucketed. Against padded batches the bound is 1 / (1 - padding share): all that not computing padding can give
if time goes with positions.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from benchmarks import harness, packing_mix
from benchmarks.peers.first_fit import first_fit
from model.families.interface import Size
from model.training.config import PackingConfig
from model.training.packing import Packer

AIM, FILL_AIM, SHARE_OF_BOUND_AIM = 1.2, 0.95, 0.85
_ROWS = 35_000
_PACKS, _ROUNDS = 60, 5
_QUICK_PACKS, _QUICK_ROUNDS = 30, 2


@dataclass(frozen=True)
class Fill:
    """How one packer did on a stream: mean shares of the budgets, packs per 10,000 rows, its own time per row."""

    tokens: float
    units: float
    packs_per_10000_rows: float
    microseconds_per_row: float


def main() -> None:
    """Measure, print, store."""
    options = harness.arguments(__doc__.splitlines()[0])
    fill = compare_fill()
    ours, peer, ratio, speed = compare_speed(options.quick)
    details = {"mix": packing_mix.NAME, "fill": fill, "speed": speed}
    harness.report(harness.result("packing", "tokens/s", ours, peer, ratio=ratio, aim=AIM, details=details), options)


def compare_fill() -> dict[str, Any]:
    """Ours and first-fit on the same stream, at the published budgets; printed as well."""
    sizes = [row.size for row in packing_mix.rows(_ROWS, seed=0)]
    fills = {"ours": measure_fill(our_packs, sizes), "first_fit": measure_fill(first_fit, sizes)}
    print(
        f"fill of {packing_mix.MAX_TOKENS} tokens and {packing_mix.MAX_TILES} tiles, {_ROWS} rows of {packing_mix.NAME}"
    )
    for name, fill in fills.items():
        print(
            f"  {name:10} tokens {fill.tokens:.4f}   tiles {fill.units:.4f}   "
            f"{fill.packs_per_10000_rows:.1f} packs for 10,000 rows   {fill.microseconds_per_row:.0f} us a row"
        )
    print(f"  aim        tokens {FILL_AIM}", flush=True)
    return {name: {key: round(x, 4) for key, x in asdict(fill).items()} for name, fill in fills.items()} | {
        "aim": FILL_AIM
    }


def compare_speed(quick: bool) -> tuple[list[float], list[float], float, dict[str, Any]]:
    """Packed beside the other ways of batching; printed as well.

    Returns:
        tokens/s packed and length-bucketed, their ratio, and everything else that was measured.
    """
    from benchmarks import packing_speed  # only here: the fill needs no torch

    speeds = packing_speed.measure(*(_QUICK_PACKS, _QUICK_ROUNDS) if quick else (_PACKS, _ROUNDS))
    others = [way for way in speeds.tokens_per_second if way != "packed"]
    ratios = {way: packing_speed.ratio_to(speeds, way) for way in others}
    bounds = {way: 1 / (1 - speeds.padding[way]) for way in others}
    print(f"{speeds.rows} rows, {speeds.tokens} tokens a round; packed against:")
    for way in others:
        print(
            f"  {way:18} {ratios[way]:.3f}   padding {speeds.padding[way]:.3f}, so the bound is {bounds[way]:.3f}   "
            f"largest batch {speeds.largest[way]} positions (packed {speeds.largest['packed']})"
        )
    share_of_bound = ratios["padded"] / bounds["padded"]
    print(f"  padded: {share_of_bound:.3f} of the bound, aim {SHARE_OF_BOUND_AIM}", flush=True)
    details = {
        "tokens_per_second": {way: [round(x, 1) for x in values] for way, values in speeds.tokens_per_second.items()},
        "packed_against": {way: round(ratio, 4) for way, ratio in ratios.items()},
        "padding_share": {way: round(share, 4) for way, share in speeds.padding.items()},
        "bound": {way: round(bound, 4) for way, bound in bounds.items()},
        "share_of_padded_bound": round(share_of_bound, 4),
        "share_of_padded_bound_aim": SHARE_OF_BOUND_AIM,
        "padding_share_bucketed_over_50_batches": round(packing_speed.padding_over_50_batches(), 4),
        "largest_batch_positions": speeds.largest,
        "steps_a_round": speeds.steps,
        "rows_a_round": speeds.rows,
        "threads": speeds.threads,
    }
    return speeds.tokens_per_second["packed"], speeds.tokens_per_second["bucketed"], ratios["bucketed"], details


def our_packs(sizes: Sequence[Size], max_tokens: int, max_units: int) -> list[list[int]]:
    """Packs of ``Packer`` on a stream, as indices into it, until the stream has no row for the window."""
    config = PackingConfig(max_tokens=max_tokens, max_units=max_units, lookahead=packing_mix.LOOKAHEAD)
    packer = Packer(config, sizes.__getitem__, lambda position: position)
    packs = []
    try:
        while True:
            packs.append(packer.next())
    except IndexError:
        return packs


def measure_fill(pack: Callable[..., object], sizes: Sequence[Size]) -> Fill:
    """Pack a stream at the published budgets; rows that are in no pack when it ends count nowhere."""
    started = time.perf_counter()
    packs = list(pack(sizes, packing_mix.MAX_TOKENS, packing_mix.MAX_TILES))
    seconds = time.perf_counter() - started
    packed = sum(map(len, packs))
    return Fill(
        mean(sum(sizes[i].tokens for i in rows) for rows in packs) / packing_mix.MAX_TOKENS,
        mean(sum(sizes[i].units for i in rows) for rows in packs) / packing_mix.MAX_TILES,
        len(packs) / packed * 10_000,
        seconds / packed * 1e6,
    )


if __name__ == "__main__":
    main()
