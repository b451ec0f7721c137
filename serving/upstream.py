"""The gateway's two clients: the vision predictor (gRPC) and the language server (HTTP). Imports no torch.

Both fail at once when nobody listens, and recover within a second of the predictor's return.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from serving.asgi import ApiError
from serving.config import GatewayConfig
from serving.wire import VISION_MODEL, EncodedImage, read_vision_reply, vision_request

_READY_FOR_S = 1.0
_MAX_REPLY_BYTES = 8 << 20
_MAX_EVENT_BYTES = 1 << 20
_JSON = {"content-type": "application/json"}


def unavailable(which: str) -> ApiError:
    """503: a predictor is down."""
    return ApiError(503, f"the {which} predictor is not available", f"{which}_unavailable", retry_after=1)


class VisionClient:
    """Encodes images through the vision predictor. Create it on the event loop that uses it."""

    def __init__(self, config: GatewayConfig) -> None:
        self._probe_timeout_s = config.probe_timeout_s
        self._channel = grpc.aio.insecure_channel(
            config.vision_target,
            options=[
                ("grpc.max_send_message_length", config.max_message_bytes),
                ("grpc.max_receive_message_length", config.max_message_bytes),
                # A predictor that comes back is found again within a second.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", round(config.connect_timeout_s * 1000)),
                ("grpc.max_reconnect_backoff_ms", 1000),
                # Predictors are neighbours, never behind a proxy of the environment.
                ("grpc.enable_http_proxy", 0),
            ],
        )
        self._stub = GRPCInferenceServiceStub(self._channel)

    async def ready(self) -> bool:
        """Whether the predictor answers and its model is loaded."""
        try:
            request = pb.ModelReadyRequest(name=VISION_MODEL)
            answer = await self._stub.ModelReady(request, timeout=self._probe_timeout_s)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.ready)

    async def encode(self, images: list[bytes], request_id: str, timeout_s: float) -> list[EncodedImage]:
        """Features of ``images``, in order.

        Raises:
            ApiError: 400 for a bad image or a budget of tokens that cannot be met, 429 when the predictor is busy, 502
                when it answers nonsense, 503 when it is down, 504 when it is late.
        """
        try:
            reply = await self._stub.ModelInfer(
                vision_request(images, request_id), timeout=timeout_s, metadata=(("x-request-id", request_id),)
            )
        except grpc.aio.AioRpcError as error:
            raise _vision_error(error) from None
        try:
            return read_vision_reply(reply, len(images))
        except ValueError:
            raise ApiError(502, "the vision predictor's answer cannot be read", "vision_failed") from None

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


def _vision_error(error: grpc.aio.AioRpcError) -> ApiError:
    status, details = error.code(), str(error.details())
    if status == grpc.StatusCode.INVALID_ARGUMENT:
        return ApiError(400, details, "invalid_image")
    if status == grpc.StatusCode.OUT_OF_RANGE:
        return ApiError(400, details, "token_budget_exceeded")
    if status == grpc.StatusCode.RESOURCE_EXHAUSTED:
        if "larger than max" in details:
            return ApiError(413, "the images of the request are too large together", "request_too_large")
        return ApiError(429, "the vision predictor is busy", "overloaded", retry_after=1)
    if status == grpc.StatusCode.DEADLINE_EXCEEDED:
        return ApiError(504, "the vision predictor did not answer in time", "deadline_exceeded")
    if status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED):
        return unavailable("vision")
    return ApiError(502, "the vision predictor failed", "vision_failed")


class LanguageClient:
    """Talks to a language server: our predictor, or any that takes ``image_embeds`` as vLLM does."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._client = httpx.AsyncClient(
            base_url=config.language_url,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_connections=config.max_in_flight + 4),
            timeout=httpx.Timeout(config.request_timeout_s, connect=config.connect_timeout_s),
        )
        self._model: str | None = None
        self._ready_until = 0.0

    async def ready(self) -> bool:
        """Whether the server answers; remembered for a second when it does."""
        if time.monotonic() < self._ready_until:
            return True
        try:
            answer = await self._client.get("/health", timeout=self._config.probe_timeout_s)
        except httpx.HTTPError:
            return False
        if answer.status_code == httpx.codes.OK:
            self._ready_until = time.monotonic() + _READY_FOR_S
        return answer.status_code == httpx.codes.OK

    async def model(self) -> str:
        """The server's name for its model: the first it lists.

        Raises:
            ApiError: 503 when the server is down, 502 when it lists none.
        """
        if self._model is None:
            try:
                answer = await self._client.get("/v1/models", timeout=self._config.probe_timeout_s)
                self._model = str(answer.raise_for_status().json()["data"][0]["id"])
            except httpx.TransportError:
                raise unavailable("language") from None
            except (httpx.HTTPStatusError, ValueError, LookupError, TypeError):
                raise ApiError(502, "the language predictor lists no model", "language_failed") from None
        return self._model

    async def complete(self, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        """The whole answer.

        Raises:
            ApiError: the server's own error, or 502 to 504.
        """
        async with self._post(body, request_id) as response:
            try:
                reply = _object(await _read(response))
            except (httpx.HTTPError, ValueError):
                self._forget()
                raise ApiError(502, "the language predictor broke off its answer", "language_failed") from None
        return reply

    @asynccontextmanager
    async def stream(self, body: dict[str, Any], request_id: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Events of a streamed answer; leaving the context closes the connection, which cancels the request.

        Raises:
            ApiError: as ``complete``; from the iteration, when the server breaks off or sends an error event.
        """
        async with self._post(body, request_id) as response:
            yield self._events(response)

    async def close(self) -> None:
        """Close open connections."""
        await self._client.aclose()

    def _forget(self) -> None:
        """Ask again before the next request: the server may be another one, or gone."""
        self._model, self._ready_until = None, 0.0

    @asynccontextmanager
    async def _post(self, body: dict[str, Any], request_id: str) -> AsyncIterator[httpx.Response]:
        # Serialising megabytes of features would hold up every other request's stream.
        content = await asyncio.to_thread(json.dumps, body)
        headers = _JSON | {"x-request-id": request_id}
        request = self._client.build_request("POST", "/v1/chat/completions", content=content, headers=headers)
        try:
            response = await self._client.send(request, stream=True)
        except httpx.TimeoutException as error:
            self._forget()
            if isinstance(error, httpx.ConnectTimeout):
                raise unavailable("language") from None
            raise ApiError(504, "the language predictor did not answer in time", "deadline_exceeded") from None
        except httpx.TransportError:
            self._forget()
            raise unavailable("language") from None
        try:
            if response.status_code != httpx.codes.OK:
                raise await self._error(response)
            yield response
        finally:
            await response.aclose()

    async def _error(self, response: httpx.Response) -> ApiError:
        try:
            error = json.loads(await _read(response))["error"]
            message, code = str(error["message"])[:500], str(error.get("code") or "invalid_request")
        except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError):
            message, code = "the language predictor refused the request", "language_failed"
        status = response.status_code
        if status in (429, 503):
            return ApiError(status, message, code, retry_after=1)
        if status == 404:
            self._forget()
        # What the gateway sent it had checked, so only statements about the prompt are the user's to mend.
        return ApiError(status if status in (400, 413) else 502, message, code)

    async def _events(self, response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
        broken = ApiError(502, "the language predictor broke off its answer", "language_failed")
        try:
            async for line in _lines(response):
                if not line.startswith("data:"):
                    continue
                payload = line.removeprefix("data:").strip()
                if payload == "[DONE]":
                    return
                event = _object(payload)
                if "error" in event:
                    raise ApiError(502, str(event["error"].get("message", "failed"))[:500], "language_failed")
                yield event
        except (httpx.HTTPError, ValueError, TypeError, AttributeError):
            self._forget()
            raise broken from None
        self._forget()
        raise broken


def _object(text: str | bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is none.
    """
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """Lines of a stream, each of bounded length.

    Raises:
        ValueError: a line is too long.
    """
    buffer = b""
    async for chunk in response.aiter_bytes():
        buffer += chunk
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            yield line.decode()
        if len(buffer) > _MAX_EVENT_BYTES:
            raise ValueError("an event is too long")


async def _read(response: httpx.Response) -> bytes:
    """The body of a response, up to a bound.

    Raises:
        ValueError: it is longer.
    """
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > _MAX_REPLY_BYTES:
            raise ValueError("the reply is too long")
    return bytes(body)
