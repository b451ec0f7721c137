"""What routing keeps: held-out score against the share of visual tokens, per family, of the profile ``tiny``.

All policies answer the same held-out rows, greedily: every tile in full; the router at a threshold that is chosen on
other rows, so that half of the tokens are left there; and, at the router's number of tokens, random tiles, the smallest
image size that gives at least as many tokens (whose tiles the tower was not trained on: it interpolates its
positions), and everything compressed (at its own, smaller number). Tokens of blank tiles do not count, neither as kept
nor as removed. Retention is a score over the score in full; its intervals are bootstrapped over pairs of scores of a
row, as are those of the router's lead over random tiles and over everything compressed. ``families_capped`` counts no
family for more than its score in full.

Learning to answer from compressed tiles also moves the answers to full ones. So the model that ``vico`` started from
answers too (``before``), and every policy says what it retains of that model's score (``of_before``): this is what
Flash costs, where retention is what its routing costs.

``--quick`` routes with the model that ``make demo`` left in ``out/line``. Otherwise ``vico`` and ``route`` run with
three seeds on a model that is fine-tuned further first (benchmarks/tiny_further.py), for more steps than a demo has
time for (benchmarks/flash_training.py); ``training_seconds`` are processor seconds of one thread. ``ratio`` is what
the router retains.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks import flash_training, tiny_further
from benchmarks.harness import Result, processes_for, result, run, workers
from components.collect.config import CollectConfig
from components.collect.digits import digit_rows, train_counts
from components.collect.embedded.rows import embedded_counts, embedded_rows
from components.scoring_table import by_family, score_row
from model.data.errors import InputError
from model.data.schema import Row
from pipelines.profile import load_profile

if TYPE_CHECKING:
    from model.families.interface import Sample
    from model.flash.network import FlashModel
    from model.flash.processor import FlashProcessor

LINE = Path("out/line")
AIM = 0.995
KEPT = 0.5
"""Share of the visual tokens that the threshold leaves on the validation rows."""
SLACK = 0.02
"""How far the share on the test rows may lie above it."""
CURVE = (0.9, 0.75, 0.6, 0.5, 0.4)
SEEDS = (0, 1, 2)
VALIDATION, ROWS, QUICK_ROWS = 2000, 10_000, 400
"""Rows for the threshold and for the scores, in the proportions of the questions that the profile draws."""
RESAMPLES = 2000
_BATCH = 64


@dataclass
class Answers:
    """A model's scores of rows under any decisions; what was answered once is not answered again."""

    network: "FlashModel"
    processor: "FlashProcessor"
    rows: Sequence[Row]

    def __post_init__(self) -> None:
        from components.flash_scores import blank_tiles

        self._samples: list[Sample] = [self.processor.question(row) for row in self.rows]
        self._known: dict[tuple[int, bytes], float] = {}
        self.tiles = [sample.units for sample in self._samples]
        shown = [sample.media["tiles"] for sample in self._samples]
        self.blank = np.concatenate([blank_tiles(tiles) for tiles in shown])
        self.row_of_tile = np.repeat(np.arange(len(self.rows)), self.tiles)

    def probabilities(self) -> np.ndarray:
        """The router's P(compress) of every tile."""
        import torch

        found = []
        with torch.inference_mode():
            for start in range(0, len(self._samples), _BATCH):
                tiles = np.concatenate([sample.media["tiles"] for sample in self._samples[start : start + _BATCH]])
                patches = self.network.patches(torch.from_numpy(tiles))
                found.append(self.network.compress_probabilities(patches).cpu().numpy())
        return np.concatenate(found)

    def kept(self, compressed: np.ndarray, families: Sequence[int] | None = None) -> float:
        """Share of the visual tokens of tiles that are not blank, of all rows or of those given."""
        counted = ~self.blank
        if families is not None:
            counted = counted & np.isin(self.row_of_tile, families)
        return float(np.where(compressed[counted], 0.25, 1.0).mean())

    def scores(self, compressed: np.ndarray) -> np.ndarray:
        """Scores [rows] with these tiles (bool [tiles]) compressed."""
        split = np.split(compressed, np.cumsum(self.tiles)[:-1])
        keys = [(index, chosen.tobytes()) for index, chosen in enumerate(split)]
        wanted = [index for index, key in enumerate(keys) if key not in self._known]
        for start in range(0, len(wanted), _BATCH):
            part = wanted[start : start + _BATCH]
            samples = [self.processor.compress(self._samples[index], split[index]) for index in part]
            for index, score in zip(part, self._score(part, samples, self.network), strict=True):
                self._known[keys[index]] = score
        return np.array([self._known[key] for key in keys])

    def resized(self, side: int) -> np.ndarray:
        """Scores [rows] with every tile in full, made ``side`` pixels small before the tower sees it."""
        return self._all_of(self.network, [self._smaller(sample, side) for sample in self._samples])

    def in_full(self, network: "FlashModel") -> np.ndarray:
        """Scores [rows] of another network, of the same processor, that sees every tile in full."""
        return self._all_of(network, self._samples)

    def _all_of(self, network: "FlashModel", samples: "Sequence[Sample]") -> np.ndarray:
        scores: list[float] = []
        for start in range(0, len(self.rows), _BATCH):
            part = range(start, min(start + _BATCH, len(self.rows)))
            scores += self._score(part, samples[start : part.stop], network)
        return np.array(scores)

    def _smaller(self, sample: "Sample", side: int) -> "Sample":
        """The same tiles at ``side`` pixels, with the first of their placeholders, as many as they have rows."""
        before, rows = self.processor.tiling.tile, self.processor.rows_per_tile
        tiles = [Image.fromarray(tile).resize((side, side), Image.Resampling.BICUBIC) for tile in sample.media["tiles"]]
        ids = np.asarray(sample.input_ids)
        keep = np.ones(len(ids), bool)
        places = np.flatnonzero(ids == self.processor.image_token_id).reshape(-1, rows)
        keep[places[:, rows * side**2 // before**2 :]] = False
        return replace(
            sample,
            input_ids=ids[keep].tolist(),
            trained=np.asarray(sample.trained)[keep].tolist(),
            media=sample.media | {"tiles": np.stack([np.asarray(tile) for tile in tiles])},
        )

    def _score(self, part: Sequence[int], samples: "Sequence[Sample]", network: "FlashModel") -> list[float]:
        import torch

        from model.families.decoding import Prompt
        from model.families.generation import decode

        media = {name: np.concatenate([sample.media[name] for sample in samples]) for name in samples[0].media}
        with torch.inference_mode():
            visual = network.media_rows({name: torch.from_numpy(array) for name, array in media.items()})
        prompts = [Prompt(sample.input_ids, sample.positions) for sample in samples]
        found = decode(network, self.processor, prompts, visual, 64)
        return [score_row(self.rows[index], answer.text).value for index, answer in zip(part, found, strict=True)]


def threshold_for(kept: float, probabilities: np.ndarray, blank: np.ndarray) -> float:
    """The highest threshold that compresses enough tiles that are not blank to leave at most this share of tokens."""
    counted = np.sort(probabilities[~blank])[::-1]
    compressed = int(np.ceil(len(counted) * (1 - kept) / 0.75))
    return float(counted[min(compressed, len(counted)) - 1]) if compressed else 1.0 + 1e-9


def at_random(compressed: np.ndarray, blank: np.ndarray, seed: int) -> np.ndarray:
    """As many compressed tiles, drawn at random: among the blank ones and among the others."""
    rng, drawn = np.random.default_rng(seed), compressed.copy()
    for kind in (blank, ~blank):
        drawn[kind] = rng.permutation(compressed[kind])
    return drawn


def smallest_side(kept: float, tile: int, patch: int) -> int:
    """The smallest side of a tile, a whole number of 2 x 2 patches, whose tokens are at least this share."""
    step = 2 * patch
    return next(side for side in range(step, tile + 1, step) if side**2 / tile**2 >= kept - 1e-9)


def retention(ours: np.ndarray, full: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Mean of ``ours`` over mean of ``full`` [rows], with the interval over rows drawn as pairs."""
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(ours), len(ours))
        ratios.append(ours[drawn].sum() / max(full[drawn].sum(), 1e-9))
    low, high = np.percentile(ratios, [2.5, 97.5])
    mean = ours.sum() / max(full.sum(), 1e-9)
    return {"retained": round(float(mean), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def heldout_rows(
    collect: CollectConfig, without: Sequence[str], validation: int, test: int
) -> tuple[list[Row], list[Row]]:
    """Validation rows and test rows, at least so many: the corpus that the profile draws continued, in held-out glyphs,
    its families in proportion."""
    drawn: dict[str, int] = {}
    if collect.digits is not None:
        drawn |= train_counts(collect.digits)
    if collect.embedded is not None:
        drawn |= embedded_counts(collect.embedded)[0]
    counts = {task: rows for task, rows in drawn.items() if task not in without}
    total = sum(counts.values())
    first = {task: math.ceil(validation * rows / total) for task, rows in counts.items()}
    last = {task: first[task] + math.ceil(test * rows / total) for task, rows in counts.items()}
    rows: list[Row] = []
    update = {"heldout": max(last.values())}
    if collect.digits is not None:
        rows += digit_rows(collect.digits.model_copy(update=update))[1]
    if collect.embedded is not None:
        rows += embedded_rows(collect.embedded.model_copy(update=update))[1]
    families = {task: indices for task, indices in by_family(rows).items() if task in counts}
    return (
        [rows[index] for task, indices in families.items() for index in indices[: first[task]]],
        [rows[index] for task, indices in families.items() for index in indices[first[task] : last[task]]],
    )


def lead(ours: np.ndarray, other: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Mean of ``ours`` less mean of ``other`` [rows], with the interval over rows drawn as pairs."""
    rng, apart = np.random.default_rng(seed), ours - other
    means = [apart[rng.integers(0, len(apart), len(apart))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": round(float(apart.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def measure_model(
    model: Path, start: Path, validation: Sequence[Row], test: Sequence[Row], *, quick: bool, seed: int
) -> Any:
    """Scores of every policy: ``{policy: (scores [rows], kept share, kept share by family)}``, full first.

    ``before`` is the model at ``start``, from which ``model`` was made, in full.
    """
    import torch

    from model.families.opening import load_network, load_processor
    from model.flash.network import FlashModel

    torch.set_num_threads(flash_training.THREADS)
    network, processor = load_network(model), load_processor(model)
    if not isinstance(network, FlashModel) or network.router is None:
        raise InputError(f"{model}: no router")
    network.eval()
    network.route_by(None)
    chosen_on, answers = Answers(network, processor, validation), Answers(network, processor, test)
    on, probabilities = chosen_on.probabilities(), answers.probabilities()

    def routed(kept: float) -> np.ndarray:
        return probabilities >= threshold_for(kept, on, chosen_on.blank)

    half = routed(KEPT)
    policies = {"full": np.zeros(len(half), bool), "router": half, "random": at_random(half, answers.blank, seed)}
    policies["compress everything"] = np.ones(len(half), bool)
    policies |= {f"router at {kept}": routed(kept) for kept in CURVE if kept != KEPT and not quick}
    families = by_family(test)
    shares = {
        name: {family: round(answers.kept(chosen, indices), 4) for family, indices in families.items()}
        for name, chosen in policies.items()
    }
    found = {name: (answers.scores(chosen), answers.kept(chosen), shares[name]) for name, chosen in policies.items()}
    tile = processor.tiling.tile
    side = smallest_side(answers.kept(half), tile, network.config.vision_config.patch_size[0])
    share = side**2 / tile**2
    found[f"images of {side} pixels"] = (answers.resized(side), share, dict.fromkeys(families, round(share, 4)))
    found["before"] = (answers.in_full(load_network(start).eval()), 1.0, shares["full"])
    return found


def summarise(found: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Score, kept share and retention of every policy, overall and by family; the router's lead over two others."""
    families, full, before = by_family(rows), found["full"][0], found["before"][0]
    table = {}
    for name, (scores, kept, shares) in found.items():
        table[name] = {"score": round(float(scores.mean()), 4), "kept": round(kept, 4)} | retention(scores, full)
        table[name]["of_before"] = retention(scores, before)
        table[name]["families"] = {
            family: {"score": round(float(scores[indices].mean()), 4), "kept": shares[family]}
            | retention(scores[indices], full[indices])
            for family, indices in families.items()
        }
    # A family that consistency training harmed in full scores more when it is routed, and would pay for others' losses.
    least = [min(found["router"][0][indices].sum(), full[indices].sum()) for indices in families.values()]
    table["router"]["families_capped"] = round(float(sum(least) / max(full.sum(), 1e-9)), 4)
    for name in ("random", "compress everything"):
        table["router"][f"over {name}"] = lead(found["router"][0], found[name][0])
    return table


def show(table: dict[str, Any]) -> None:
    """Print policies, overall and by family."""
    families = list(table["full"]["families"])
    heads = " ".join(f"{family[:10]:>10}" for family in families)
    print(" " * 20 + "   kept  score  retained [95 %]       of before " + heads)
    for name, entry in table.items():
        cells = " ".join(f"{part['score']:10.3f}" for part in entry["families"].values())
        interval = f"{entry['retained']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
        of_before = entry["of_before"]["retained"]
        print(f"{name:<20}{entry['kept']:7.3f}{entry['score']:7.3f}  {interval}  {of_before:8.3f} {cells}")
    for name in ("random", "compress everything"):
        apart = table["router"][f"over {name}"]
        print(f"router over {name}: {apart['mean']:.3f} [{apart['low']:.3f}, {apart['high']:.3f}]")


def aims(tables: Sequence[dict[str, Any]]) -> dict[str, bool]:
    """What we want to see, and whether every seed shows it (retention: their mean)."""
    routed = [table["router"] for table in tables]
    families = [part for entry in routed for part in entry["families"].values()]
    lost = [table["full"]["score"] - table["compress everything"]["score"] for table in tables]
    return {
        f"half of the tokens are removed, within {SLACK}": all(entry["kept"] <= KEPT + SLACK for entry in routed),
        f"retention of {AIM}": float(np.mean([entry["retained"] for entry in routed])) >= AIM,
        "its lower bound is 0.985": all(entry["low"] >= 0.985 for entry in routed),
        "no family's upper bound is under 0.98": all(part["high"] >= 0.98 for part in families),
        "compressing everything loses 10 points": all(points >= 0.1 for points in lost),
        "random tiles are significantly worse": all(entry["over random"]["low"] > 0 for entry in routed),
    }


@dataclass(frozen=True)
class Job:
    """One seed's model: trained from ``start``, or that of the line when ``quick``."""

    line: Path
    start: Path
    seed: int
    quick: bool


def measure_seed(job: Job) -> tuple[dict[str, Any], dict[str, int], int]:
    """The table of one seed, how many rows it is of, and the processor seconds of its training."""
    profile = load_profile("tiny")
    sizes = (QUICK_ROWS, QUICK_ROWS) if job.quick else (VALIDATION, ROWS)
    validation, test = heldout_rows(profile.collect, profile.curate.pretrain_tasks, *sizes)
    model, seconds = job.line / "route" / "model", 0.0
    if not job.quick:
        beside = job.line.parent / "retention"
        model, seconds = flash_training.retrain(profile, job.line, job.start, beside, job.seed)
    found = measure_model(model, job.start, validation, test, quick=job.quick, seed=job.seed)
    return summarise(found, test), {"rows": len(test), "validation_rows": len(validation)}, round(seconds)


def measure(quick: bool, line: Path = LINE, processes: int = 1) -> Result:
    """Measure the line's model, or with three seeds a model each (``quick`` is one), in so many processes."""
    needed = line / ("route" if quick else "sft") / "model"
    if not needed.is_dir():
        raise InputError(f"{needed}: no such model; run make demo first")
    start = flash_training.start_of(line)
    if not quick:
        start = tiny_further.fine_tune_further(line, load_profile("tiny"), tiny_further.STEPS)
    with workers(processes) as pool:
        found = list(pool.map(measure_seed, [Job(line, start, seed, quick) for seed in ((0,) if quick else SEEDS)]))
    tables = [table for table, _, _ in found]
    for table in tables:
        show(table)
    details = found[0][1] | {"seeds": tables, "aims": aims(tables)}
    if not quick:
        details |= {"further_steps": tiny_further.STEPS, "training": flash_training.settings()}
        details |= {"training_seconds": [seconds for *_, seconds in found]}
    for wanted, reached in details["aims"].items():
        print(f"{'reached' if reached else 'missed '}  {wanted}")
    ours = [table["router"]["score"] for table in tables]
    peer = [table["full"]["score"] for table in tables]
    ratio = sum(ours) / max(sum(peer), 1e-9)
    return result("flash_retention", "held-out score", ours, peer, ratio=ratio, aim=AIM, details=details)


def main() -> int:
    """Run the benchmark, a seed on each processor."""
    return run(__doc__, lambda options: measure(options.quick, processes=processes_for(options)))


if __name__ == "__main__":
    sys.exit(main())
