"""The vision predictor's model: encoded images in, packed features out. Loads the vision half alone.

Images are decoded and tiled on a few threads, tiles of concurrent requests go through the tower together on one
other, and the event loop does neither.
"""

import asyncio
import struct
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from grpc_interceptor.exceptions import InvalidArgument, OutOfRange, ResourceExhausted
from kserve import InferRequest, Model
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from prometheus_client import Counter, Gauge, Histogram

from model.data.errors import InputError
from model.flash.checkpoint import load_model
from model.flash.decisions import BudgetError, Decision
from model.flash.encoding import Shown, show_requests
from model.flash.images import Tiling, read_image, tile_image
from model.flash.network import FlashModel
from serving.config import VisionServerConfig
from serving.feature_cache import FeatureCache
from serving.features import pack_features
from serving.microbatch import MicroBatcher, QueueFull
from serving.wire import IMAGES, VISION_MODEL, EncodedImage, content_key, vision_reply

_DECODERS = 2
_QUEUED = Gauge("fovea_vision_queue_tiles", "Tiles that wait for the tower")
_BATCH = Histogram(
    "fovea_vision_batch_tiles", "Tiles that went through the tower together", buckets=(1, 2, 4, 8, 16, 32, 64)
)
_IMAGES = Counter("fovea_vision_images_total", "Images asked for", ["source"])
_TILES = Counter("fovea_vision_tiles_total", "Tiles that went through the tower", ["resolution"])
_CACHE = Gauge("fovea_vision_cache_bytes", "Bytes of cached features")
_Tiles = list[np.ndarray]
"""Tiles [N, S, S, 3] of images that are routed together."""
_Result = TypeVar("_Result")


class VisionPredictor(Model):
    """kserve model that encodes images.

    Args:
        directory: model directory; its vision half is read by ``load``.
        config: limits and batching.
    """

    def __init__(self, directory: Path, config: VisionServerConfig) -> None:
        super().__init__(VISION_MODEL)
        self._directory, self._config = directory, config
        self._cache = FeatureCache(config.cache_bytes)
        self._decoders = ThreadPoolExecutor(_DECODERS, "decode")
        self._pending_images = 0
        self._network: FlashModel | None = None
        self._batcher: MicroBatcher[_Tiles, Shown | InputError] = MicroBatcher(
            self._encode,
            max_cost=config.max_batch_tiles,
            max_wait_s=config.batch_wait_ms / 1000,
            queue_cost=config.queue_tiles,
            name="tower",
        )

    def load(self) -> bool:
        """Read the vision half.

        Raises:
            InputError: the model directory is missing or incomplete.
        """
        dtype = getattr(torch, self._config.dtype)
        full = self._config.full_resolution
        self._network = load_model(
            self._directory, "vision", dtype=dtype, device=self._config.device, full_resolution=full
        )
        self.ready = True
        return self.ready

    async def predict(
        self,
        payload: InferRequest,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> pb.ModelInferResponse:
        """Features of the request's images, see ``serving.wire``.

        The images of one request share the tile budget, as they do in training; requests do not influence each
        other. Fails with INVALID_ARGUMENT for a bad image, OUT_OF_RANGE for a budget of tokens that cannot be met, and
        RESOURCE_EXHAUSTED when the queue is full.
        """
        assert self._network is not None
        images = self._read_request(payload)
        tiling = self._network.tiling.shared_by(len(images))
        if self._pending_images and self._pending_images + len(images) > self._config.queue_tiles:
            raise ResourceExhausted("the vision predictor is busy: too many images wait")
        self._pending_images += len(images)
        try:
            decision = self._network.decision
            if decision is not None and decision.spans_request:
                encoded = await self._together(images, tiling, decision)
            else:
                work = [self._one(index, image, tiling, decision) for index, image in enumerate(images)]
                encoded = await _all_or_first_error(work)
        except BudgetError as error:
            raise OutOfRange(str(error)) from None
        except InputError as error:
            raise InvalidArgument(str(error)) from None
        except QueueFull:
            raise ResourceExhausted("the vision predictor is busy: too many tiles wait") from None
        finally:
            self._pending_images -= len(images)
        return vision_reply(encoded, self._network.weights_version, payload.id or "")

    def _read_request(self, payload: InferRequest) -> list[bytes]:
        tensors = {tensor.name: tensor for tensor in payload.inputs}
        if set(tensors) != {IMAGES} or tensors[IMAGES].datatype != "BYTES":
            raise InvalidArgument(f"the request must hold exactly one BYTES tensor named {IMAGES!r}")
        tensor = tensors[IMAGES]
        try:
            # Clients may send typed contents, or raw ones, which kserve decodes.
            images = tensor.data or tensor.as_numpy().ravel().tolist()
        except (ValueError, struct.error):
            raise InvalidArgument(f"{IMAGES!r} does not hold what its shape says") from None
        if not 1 <= len(images) <= self._config.max_images:
            raise InvalidArgument(f"{len(images)} images in a request; allowed are 1 to {self._config.max_images}")
        return images

    async def _one(self, index: int, image: bytes, tiling: Tiling, decision: Decision | None) -> EncodedImage:
        """An image that is routed by itself, so that its features serve every request."""
        key = content_key(self._network.weights_version, image, _settings(tiling, decision))
        if found := self._cache.get(key):
            _IMAGES.labels("cache").inc()
            return found
        tiles = await self._tiles(index, image, tiling)
        return (await self._shown([tiles], [key]))[0]

    async def _together(self, images: list[bytes], tiling: Tiling, decision: Decision) -> list[EncodedImage]:
        """Images that share a budget of tokens: features of each depend on all."""
        request = sha256(b"".join(sha256(image).digest() for image in images)).hexdigest()
        settings = _settings(tiling, decision) | {"request": request}
        version = self._network.weights_version
        keys = [content_key(version, image, settings | {"place": place}) for place, image in enumerate(images)]
        if all(found := [self._cache.get(key) for key in keys]):
            _IMAGES.labels("cache").inc(len(images))
            return found
        work = [self._tiles(index, image, tiling) for index, image in enumerate(images)]
        return await self._shown(await _all_or_first_error(work), keys)

    async def _tiles(self, index: int, image: bytes, tiling: Tiling) -> np.ndarray:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoders, self._decode, image, tiling)
        except InputError as error:
            raise InputError(f"image {index + 1}: {error}") from error

    async def _shown(self, images: _Tiles, keys: list[str]) -> list[EncodedImage]:
        """Through the tower, packed, and kept."""
        shown = await asyncio.wrap_future(self._batcher.submit(images, cost=sum(len(tiles) for tiles in images)))
        if isinstance(shown, InputError):
            raise shown
        loop = asyncio.get_running_loop()
        encoded = []
        for (features, rows_per_tile), key in zip(shown, keys, strict=True):
            packed = await loop.run_in_executor(self._decoders, pack_features, features)
            encoded.append(EncodedImage(packed, tuple(rows_per_tile), key))
            self._cache.put(encoded[-1])
            _TILES.labels("full").inc(rows_per_tile.count(self._network.rows_per_tile))
            _TILES.labels("compressed").inc(len(rows_per_tile) - rows_per_tile.count(self._network.rows_per_tile))
        _IMAGES.labels("tower").inc(len(images))
        _CACHE.set(self._cache.size_bytes)
        return encoded

    def _decode(self, image: bytes, tiling: Tiling) -> np.ndarray:
        opened = read_image(image, self._config.max_image_bytes, self._config.max_image_pixels)
        return tile_image(opened, tiling)

    @torch.inference_mode()
    def _encode(self, requests: list[_Tiles]) -> list[Shown | InputError]:
        """What each request shows, or why it cannot; runs on the batcher's thread."""
        counts = [[len(tiles) for tiles in images] for images in requests]
        _BATCH.observe(sum(map(sum, counts)))
        _QUEUED.set(self._batcher.waiting_cost)
        together = np.concatenate([tiles for images in requests for tiles in images])
        # A request that cannot be shown gets its reason; the others of the batch are answered.
        return show_requests(self._network, self._network.patches(torch.from_numpy(together)), counts)


def _settings(tiling: Tiling, decision: Decision | None) -> dict[str, object]:
    return asdict(tiling) | {"decision": None if decision is None else asdict(decision)}


async def _all_or_first_error(work: list[Awaitable[_Result]]) -> list[_Result]:
    """All results, in order. The first error cancels the rest, as does a client that went away."""
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
