"""Requests and samples through the vision half: what every image becomes, and where tiles are routed.

Shape suffixes: N tiles, P patches, D hidden, R visual rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.data.errors import InputError
from model.families.interface import Sample
from model.flash.compression import compress_sample, tiles_per_image
from model.flash.decisions import COMPRESSION, Decision, decide
from model.flash.images import Tiling, choose_grid, read_image, tile_image
from model.flash.picture import SeenImage

if TYPE_CHECKING:
    from model.flash.network import FlashModel

TILES_AT_ONCE = 64
"""Tiles that go through the tower together: 64 rows of large images have 832 of them."""
Shown = list[tuple[Tensor, list[int]]]
"""Of each image of a request its features [R, D], and the rows of each of its tiles."""


@dataclass
class ImageFeatures:
    """What the language half needs of one image.

    Attributes:
        features: [rows, D] in the model's dtype.
        rows_per_tile: rows of each tile, thumbnail last; their sum is ``rows``.
        grid: (columns, rows) of the tile grid, the thumbnail not counted.
        weights_version: of the vision half that made them.
        key: content address (weights, tiling and image bytes); equal keys mean equal features.
    """

    features: Tensor
    rows_per_tile: list[int]
    grid: tuple[int, int]
    weights_version: str
    key: str


def encode_requests(
    network: "FlashModel", requests: Sequence[Sequence[Image.Image | bytes]]
) -> list[list[ImageFeatures]]:
    """``FlashModel.encode_batch``.

    Raises:
        InputError: an image cannot be read, or a request cannot meet the budget of tokens.
    """
    cut = []
    for number, images in enumerate(requests):
        tiling = network.tiling.shared_by(len(images))
        for given in images:
            image = read_image(given) if isinstance(given, bytes) else given
            cut.append((number, image, tiling, tile_image(image, tiling)))
    results: list[list[ImageFeatures]] = [[] for _ in requests]
    if not cut:
        return results
    tiles_NSSC = torch.from_numpy(np.concatenate([tiles for *_, tiles in cut]))
    patches_NPD = torch.cat([network.patches(part) for part in tiles_NSSC.split(TILES_AT_ONCE)])
    asked = [list(of_request) for _, of_request in groupby(cut, key=itemgetter(0))]
    seen = show_requests(network, patches_NPD, [[len(tiles) for *_, tiles in images] for images in asked])
    version = network.weights_version
    for images, shown in zip(asked, seen, strict=True):
        if isinstance(shown, InputError):
            raise shown
        for (number, image, tiling, _), (rows, rows_N) in zip(images, shown, strict=True):
            grid, key = choose_grid(image.width, image.height, tiling), _key(version, image, tiling, rows_N)
            results[number].append(ImageFeatures(rows, rows_N, grid, version, key))
    return results


def show_requests(
    network: "FlashModel",
    patches_NPD: Tensor,
    requests: Sequence[Sequence[int]],
    decisions: Sequence[Decision | None] | None = None,
) -> list[Shown | InputError]:
    """Requests whose patches came from the tower together, each routed by itself, through the projectors together.

    Args:
        network: routes them.
        patches_NPD: of all tiles.
        requests: the tiles of each image of each request; their sum is N.
        decisions: of each request; the network's own for all where it is None.

    Returns:
        of each request its images, or why it cannot be shown: its budget of tokens cannot be met.
    """
    chosen = [network.decision] * len(requests) if decisions is None else decisions
    routed = any(decision is not None for decision in chosen)
    probabilities_N = network.compress_probabilities(patches_NPD).cpu().numpy() if routed else None
    compressed_N, start = np.zeros(len(patches_NPD), bool), 0
    refused: dict[int, InputError] = {}
    rows = network.rows_per_tile
    for number, (counts, decision) in enumerate(zip(requests, chosen, strict=True)):
        own = slice(start, start + sum(counts))
        start = own.stop
        if decision is not None:
            try:
                compressed_N[own] = decide(probabilities_N[own], counts, decision, rows_per_tile=rows)
            except InputError as error:
                refused[number] = error
    rows_N = np.where(compressed_N, rows // COMPRESSION, rows).tolist()
    left = network.project(patches_NPD, torch.from_numpy(compressed_N))
    results: list[Shown | InputError] = []
    for number, counts in enumerate(requests):
        shown = []
        for tiles in counts:
            own_N, rows_N = rows_N[:tiles], rows_N[tiles:]
            features, left = left[: sum(own_N)], left[sum(own_N) :]
            shown.append((features, own_N))
        results.append(refused.get(number, shown))
    return results


@torch.inference_mode()
def look(network: "FlashModel", images: Sequence[Image.Image]) -> list[SeenImage]:
    """The images of one request as the network sees them, to be drawn; P(compress) of each tile if it has a router.

    Raises:
        InputError: the request cannot meet the budget of tokens.
    """
    tiling = network.tiling.shared_by(len(images))
    cut = [tile_image(image, tiling) for image in images]
    counts = [len(tiles) for tiles in cut]
    if not cut:
        return []
    patches_NPD = torch.cat([network.patches(p) for p in torch.from_numpy(np.concatenate(cut)).split(TILES_AT_ONCE)])
    (shown,) = show_requests(network, patches_NPD, [counts])
    if isinstance(shown, InputError):
        raise shown
    compressed = [[count < network.rows_per_tile for count in rows_N] for _, rows_N in shown]
    known: list[list[float] | None] = [None] * len(images)
    if network.router is not None:
        known = [own.tolist() for own in network.compress_probabilities(patches_NPD).cpu().split(counts)]
    return [
        SeenImage(image, choose_grid(*image.size, tiling), flags, own, network.rows_per_tile)
        for image, flags, own in zip(images, compressed, known, strict=True)
    ]


def _key(weights_version: str, image: Image.Image, tiling: Tiling, rows_N: list[int]) -> str:
    head = f"{weights_version}|{tiling}|{rows_N}|{image.size}|".encode()
    return sha256(head + image.tobytes()).hexdigest()


def route_samples(network: "FlashModel", samples: Sequence[Sample]) -> list[Sample]:
    """Samples that do not say yet which of their tiles are compressed, compressed as the network decides.

    Raises:
        InputError: names the row whose tiles cannot meet the budget of tokens.
    """
    undecided = [sample for sample in samples if "compressed" not in sample.media]
    with _evaluating(network):
        seen = _seen_groups(network, undecided)
        routed = iter([_routed(network, *pair) for group, found, _ in seen for pair in zip(group, found, strict=True)])
    return [sample if "compressed" in sample.media else next(routed) for sample in samples]


def show_samples(network: "FlashModel", samples: Sequence[Sample]) -> tuple[list[Sample], Tensor | None]:
    """What ``route_samples`` gives, and the visual rows [R, D] of all samples; None where none has a tile.

    Raises:
        InputError: as ``route_samples``.
    """
    shown: list[Sample] = []
    rows = []
    with _evaluating(network):
        for group, found, patches_NPD in _seen_groups(network, samples):
            routed = [_routed(network, *pair) for pair in zip(group, found, strict=True)]
            shown += routed
            if patches_NPD is not None:
                compressed_N = np.concatenate([sample.media["compressed"] for sample in routed])
                rows.append(network.project(patches_NPD, torch.from_numpy(compressed_N)))
    return shown, torch.cat(rows) if rows else None


@torch.inference_mode()
def sample_probabilities(network: "FlashModel", samples: Sequence[Sample]) -> list[np.ndarray]:
    """P(compress) [N] of the tiles of each sample, from the passes that ``route_samples`` decides by."""
    with _evaluating(network):
        return [found_N.numpy() for _, found, _ in _seen_groups(network, samples) for found_N in found]


@contextmanager
def _evaluating(network: "FlashModel") -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def _seen_groups(
    network: "FlashModel", samples: Sequence[Sample]
) -> Iterator[tuple[list[Sample], Sequence[Tensor], Tensor | None]]:
    """Samples, P(compress) [N] of the tiles of each, and the patches [N, P, D] of all (None where they have no tile):
    as many samples together as have ``TILES_AT_ONCE`` tiles, or a single one that has more."""
    for group in _groups(samples):
        counts = [sample.units for sample in group]
        if not sum(counts):
            yield group, [torch.empty(0)] * len(group), None
            continue
        tiles_NSSC = torch.from_numpy(np.concatenate([sample.media["tiles"] for sample in group]))
        patches_NPD = torch.cat([network.patches(part) for part in tiles_NSSC.split(TILES_AT_ONCE)])
        yield group, network.compress_probabilities(patches_NPD).cpu().split(counts), patches_NPD


def _groups(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    group: list[Sample] = []
    for sample in samples:
        if group and sum(each.units for each in group) + sample.units > TILES_AT_ONCE:
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


def _routed(network: "FlashModel", sample: Sample, probabilities_N: Tensor) -> Sample:
    if "compressed" in sample.media:
        return sample
    image_token, rows = network.config.image_token_id, network.rows_per_tile
    counts = tiles_per_image(sample.input_ids, image_token_id=image_token, rows_per_tile=rows)
    try:
        compressed = decide(probabilities_N.numpy(), counts, network.decision, rows_per_tile=rows)
    except InputError as error:
        raise InputError(f"row {sample.row_id}: {error}") from error
    return compress_sample(sample, compressed, image_token_id=image_token, rows_per_tile=rows)
