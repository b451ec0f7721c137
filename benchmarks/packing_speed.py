"""Training steps on the same rows of the mix, batched in four ways: packed, padded, and bucketed by length twice.

A step is a forward pass, a backward pass and an update by AdamW, on one batch, in float32. Batches are made before the
clock runs. All ways see the same rows through the same network; they differ in which rows share a forward pass:

- packed: the packs of ``Packer``;
- padded: as many rows as a pack has in the mean, in the order of the stream, padded to the longest;
- bucketed: as many rows, of neighbouring lengths: each window of as many rows as the packer sees is sorted by length;
- bucketed by tokens: the same order, and as many rows as fit into the token budget of a pack with their padding.

The network is small, but its halves are balanced as those of the 8B size: the language model spends on the tokens of a
tile 6.5 times what the vision tower spends on its patches (there 8.2 B parameters on 256 tokens, 0.3 B on 1,024
patches: 6.8). Depth does not change the ratios, so there is little of it.
"""

import random
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models

from benchmarks.packing_mix import LOOKAHEAD, MAX_TILES, MAX_TOKENS, TILE_TOKENS, MixRow, rows
from model.data.schema import IMG_CONTEXT, IMG_END, IMG_START, TURN_END
from model.families.interface import Sample
from model.flash.build import build_model
from model.flash.config import LanguageConfig, ModelConfig, VisionConfig
from model.flash.network import FlashModel
from model.training.attention import set_attention, use_varlen_attention
from model.training.batches import Batch, pack, pad
from model.training.config import PackingConfig
from model.training.loop import supervised_loss
from model.training.packing import Packer

SCALE = 16
_WORDS = 512
_SIDE = 56
_PIECES = 10
_WAYS = ("packed", "padded", "bucketed", "bucketed by tokens")


@dataclass(frozen=True)
class Speeds:
    """What was measured, by way of batching.

    Attributes:
        tokens_per_second: real tokens (padding not counted) in a second, one value a round.
        padding: share of the positions that are padding.
        largest: positions of the largest batch, which decides the memory.
        steps: batches of a round.
        rows, tokens: of a round; the same for all.
        threads: of torch.
    """

    tokens_per_second: dict[str, list[float]]
    padding: dict[str, float]
    largest: dict[str, int]
    steps: dict[str, int]
    rows: int
    tokens: int
    threads: int


def measure(packs: int, rounds: int) -> Speeds:
    """Train on the rows of so many packs, in every way, so many times.

    The ways take turns after every tenth of a round, so that whatever else the machine does slows all of them.
    """
    mix = rows(packs * 20 + 2 * LOOKAHEAD, seed=1, scale=SCALE)
    network, tokenizer = network_and_tokenizer()
    groups = batches_of_rows(mix, packs)
    rng = np.random.default_rng(0)
    samples = {i: _sample(mix[i], i, tokenizer, rng) for group in groups["packed"] for i in group}
    batches = {way: _collate(way, groups[way], samples, tokenizer) for way in _WAYS}
    optimisers = {way: torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05) for way in _WAYS}
    for way in _WAYS:  # unmeasured: memory is touched, kernels are chosen, the optimisers make their states
        train(network, optimisers[way], batches[way][:1], packed=way == "packed")
    speeds: dict[str, list[float]] = {way: [] for way in _WAYS}
    for number in range(rounds):
        seconds = dict.fromkeys(_WAYS, 0.0)
        for piece in range(_PIECES):
            first = (number + piece) % len(_WAYS)
            for way in _WAYS[first:] + _WAYS[:first]:
                start, end = (len(batches[way]) * (piece + more) // _PIECES for more in (0, 1))
                seconds[way] += train(network, optimisers[way], batches[way][start:end], packed=way == "packed")
        for way in _WAYS:
            speeds[way].append(sum(batch.tokens for batch in batches[way]) / seconds[way])
        print(f"round {number + 1}: " + ", ".join(f"{way} {speeds[way][-1]:.0f}" for way in _WAYS), flush=True)
    positions = {way: [batch.positions for batch in batches[way]] for way in _WAYS}
    tokens = sum(batch.tokens for batch in batches["packed"])
    return Speeds(
        speeds,
        {way: 1 - tokens / sum(positions[way]) for way in _WAYS},
        {way: max(positions[way]) for way in _WAYS},
        {way: len(batches[way]) for way in _WAYS},
        len(samples),
        tokens,
        torch.get_num_threads(),
    )


def batches_of_rows(mix: Sequence[MixRow], packs: int) -> dict[str, list[list[int]]]:
    """Indices into ``mix`` of every batch, by way; every way has each row of the first ``packs`` packs once."""
    sizes = [row.size for row in mix]
    budget = MAX_TOKENS // SCALE
    config = PackingConfig(max_tokens=budget, max_units=MAX_TILES, lookahead=LOOKAHEAD)
    packer = Packer(config, sizes.__getitem__, lambda position: position)
    packed = [packer.next() for _ in range(packs)]
    stream = sorted(row for group in packed for row in group)
    each = round(len(stream) / packs)
    by_length = [sorted(window, key=lambda row: sizes[row].tokens) for window in _cut(stream, LOOKAHEAD)]
    bucketed_by_tokens = []
    for window in by_length:
        group: list[int] = []
        for row in window:  # ascending, so that the new row is the longest
            if group and (len(group) + 1) * sizes[row].tokens > budget:
                bucketed_by_tokens.append(group)
                group = []
            group.append(row)
        bucketed_by_tokens.append(group)
    return {
        "packed": packed,
        "padded": _cut(stream, each),
        "bucketed": [group for window in by_length for group in _cut(window, each)],
        "bucketed by tokens": bucketed_by_tokens,
    }


def _cut(indices: Sequence[int], each: int) -> list[list[int]]:
    """Groups of about ``each``, as even as can be, so that no small rest is left to train alone."""
    return [part.tolist() for part in np.array_split(np.array(indices), max(1, round(len(indices) / each)))]


def network_and_tokenizer() -> tuple[FlashModel, Tokenizer]:
    """The network of the benchmark with random weights, and a tokenizer of numbered words."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(_WORDS)}, unk_token="w0"))
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (IMG_START, IMG_END, IMG_CONTEXT, TURN_END)])
    vision = VisionConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=_SIDE,
        patch_size=7,
    )
    language = LanguageConfig(
        hidden_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=48,
        intermediate_size=576,
        max_position_embeddings=MAX_TOKENS // SCALE,
    )
    network, _ = build_model(ModelConfig(vision=vision, language=language), tokenizer, seed=0)
    set_attention(network, "sdpa")
    return network.train(), tokenizer


def train(network: FlashModel, optimiser: torch.optim.Optimizer, batches: Sequence[Batch], *, packed: bool) -> float:
    """One optimiser step per batch; the seconds they took."""
    with use_varlen_attention(network.language_model) if packed else nullcontext():
        started = time.perf_counter()
        for batch in batches:
            supervised_loss(network, batch, float(batch.weights.sum())).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return time.perf_counter() - started


def _sample(row: MixRow, index: int, tokenizer: Tokenizer, rng: np.random.Generator) -> Sample:
    """Random pixels and words of the row's size; the second half of the text carries loss."""
    image = []
    if row.tiles:
        context = [tokenizer.token_to_id(IMG_CONTEXT)] * (row.tiles * TILE_TOKENS // SCALE)
        image = [tokenizer.token_to_id(IMG_START), *context, tokenizer.token_to_id(IMG_END)]
    text = rng.integers(0, _WORDS, row.text_tokens).tolist()
    asked = len(image) + row.text_tokens // 2
    trained = [False] * asked + [True] * (len(image) + row.text_tokens - asked)
    tiles = rng.integers(0, 256, (row.tiles, _SIDE, _SIDE, 3), np.uint8)
    return Sample(str(index), image + text, trained, {"tiles": tiles}, row.tiles)


def _collate(way: str, groups: Sequence[list[int]], samples: dict[int, Sample], tokenizer: Tokenizer) -> list[Batch]:
    """The batches of a way, in an order that does not follow the lengths."""
    shuffled = random.Random(0).sample(list(groups), len(groups))
    rows_of = [[samples[i] for i in group] for group in shuffled]
    if way == "packed":
        return [pack(group, "square") for group in rows_of]
    return [pad(group, "square", tokenizer.token_to_id(TURN_END)) for group in rows_of]


def ratio_to(speeds: Speeds, way: str) -> float:
    """Median over the rounds of packed / ``way``; a round is one stretch of time for all ways."""
    pairs = zip(speeds.tokens_per_second["packed"], speeds.tokens_per_second[way], strict=True)
    return statistics.median(packed / other for packed, other in pairs)


def padding_over_50_batches(count: int = 8500, each: int = 17) -> float:
    """Share of padding when windows of 50 batches are sorted by length, as transformers' ``group_by_length`` does.

    Not trained with: it says what a window three times as long as the packer's would leave to gain.
    """
    tokens = [row.size.tokens for row in rows(count, seed=1, scale=SCALE)]
    positions = 0
    for start in range(0, count, 50 * each):
        window = sorted(tokens[start : start + 50 * each])
        positions += sum(len(group) * max(group) for group in _cut(window, each))
    return 1 - sum(tokens) / positions
