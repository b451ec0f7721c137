"""The gateway: OpenAI's chat completions in front of the two predictors. Runs without torch.

``python -m serving.gateway --vision HOST:PORT --language-url http://HOST:PORT``. Images go to the vision predictor, and
what it packs goes unopened, in the order of the images, to the language server: our own predictor, or any vLLM that was
started with ``--enable-mm-embeds``.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from model.data.errors import InputError
from serving.asgi import (
    ApiError,
    BodyLimit,
    ClientGone,
    HeldStream,
    add_error_handlers,
    serve_http,
    server_sent_event,
    unless_gone,
)
from serving.config import GatewayConfig
from serving.gateway_metrics import GatewayMetrics
from serving.media import ImageFetcher
from serving.openai_schema import ErrorBody, GatewayChatRequest, ImageUrlPart, ModelCard, ModelList, TextPart
from serving.process import announce, bind, parse_arguments, run_main
from serving.upstream import LanguageClient, VisionClient, unavailable
from serving.wire import EncodedImage, embeds_part

_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A chat completion; with `stream`, its chunks as server-sent events.",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
} | {status: {"model": ErrorBody} for status in (400, 404, 408, 413, 429, 500, 502, 503, 504)}


class Gateway:
    """The work behind the routes. Create it on the event loop that serves them."""

    def __init__(self, config: GatewayConfig, metrics: GatewayMetrics) -> None:
        self._config, self._metrics = config, metrics
        self._vision, self._language = VisionClient(config), LanguageClient(config)
        self._fetcher = ImageFetcher(config.allowed_image_hosts, config.max_image_bytes, config.fetch_timeout_s)
        self._in_flight = 0

    async def health(self) -> dict[str, str]:
        """State of each predictor, asked now."""
        vision, language = await asyncio.gather(self._vision.ready(), self._language.ready())
        states = {"vision": vision, "language": language}
        return {"status": "ok" if all(states.values()) else "unavailable"} | {
            name: "ok" if ready else "unavailable" for name, ready in states.items()
        }

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """One of the bounded number of requests that are worked on.

        Raises:
            ApiError: 429, all are taken.
        """
        if self._in_flight >= self._config.max_in_flight:
            raise ApiError(429, f"{self._in_flight} requests are being worked on", "overloaded", retry_after=1)
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)

    async def prepare(self, body: GatewayChatRequest, request_id: str) -> dict[str, Any]:
        """The language server's request: images replaced by their features, greedy decoding.

        Raises:
            ApiError: the request cannot be answered, or a predictor is down.
        """
        self._check(body)
        parts = [part for message in body.messages if not isinstance(message.content, str) for part in message.content]
        urls = [part.image_url.url for part in parts if isinstance(part, ImageUrlPart)]
        # A language server that is down is found while the images are encoded, not after.
        model, encoded = await _together(self._language_model(), self._encode(urls, request_id))
        features = iter(encoded)
        messages = [{"role": each.role, "content": _with_features(each.content, features)} for each in body.messages]
        request: dict[str, Any] = {"model": model, "messages": messages, "temperature": 0, "stream": body.stream}
        if body.token_limit is not None:
            request["max_tokens"] = body.token_limit
        if body.stream and body.stream_options is not None and body.stream_options.include_usage:
            request["stream_options"] = {"include_usage": True}
        return request

    async def complete(self, request: dict[str, Any], request_id: str) -> dict[str, Any]:
        """The whole answer, under the gateway's name for the model."""
        return await self._language.complete(request, request_id) | {"model": self._config.model_name}

    async def start_stream(
        self, request: dict[str, Any], request_id: str, held: AsyncExitStack, deadline: float
    ) -> AsyncIterator[bytes]:
        """Server-sent events of an answer that has begun; ``held`` keeps its connection.

        An upstream failure after this point, or the ``deadline`` (of ``time.monotonic``), ends the stream with an
        error event.

        Raises:
            ApiError: the language server does not take the request.
        """
        events = await held.enter_async_context(self._language.stream(request, request_id))

        async def encode() -> AsyncIterator[bytes]:
            try:
                while True:
                    async with asyncio.timeout(deadline - time.monotonic()):
                        event = await anext(events)
                    yield server_sent_event(event | {"model": self._config.model_name})
            except StopAsyncIteration:
                yield server_sent_event("[DONE]")
            except ApiError as error:
                self._metrics.broken_streams.inc()
                yield server_sent_event(error.body)
            except TimeoutError:
                self._metrics.broken_streams.inc()
                yield server_sent_event(late(self._config).body)

        return encode()

    async def close(self) -> None:
        """Close all upstream connections."""
        await asyncio.gather(self._vision.close(), self._language.close(), self._fetcher.close())

    def _check(self, body: GatewayChatRequest) -> None:
        config = self._config
        if body.model != config.model_name:
            message = f"no such model: {body.model[:64]!r}; served is {config.model_name!r}"
            raise ApiError(404, message, "model_not_found")
        if len(body.messages) > config.max_messages:
            raise ApiError(400, f"more than {config.max_messages} messages", "too_many_messages")
        texts, images = 0, 0
        for message in body.messages:
            for part in [message.content] if isinstance(message.content, str) else message.content:
                if isinstance(part, ImageUrlPart):
                    images += 1
                else:
                    texts += len(part if isinstance(part, str) else part.text)
        if images > config.max_images:
            raise ApiError(400, f"{images} images in a request; allowed are {config.max_images}", "too_many_images")
        if texts > config.max_text_chars:
            raise ApiError(400, f"the text is longer than {config.max_text_chars} characters", "text_too_long")

    async def _language_model(self) -> str:
        if not await self._language.ready():
            raise unavailable("language")
        return await self._language.model()

    async def _encode(self, urls: list[str], request_id: str) -> list[EncodedImage]:
        if not urls:
            return []
        started = time.monotonic()
        images = []
        for index, url in enumerate(urls):
            try:
                images.append(await self._fetcher.read(url))
            except InputError as error:
                raise ApiError(400, f"image {index + 1}: {error}", "invalid_image") from None
        encoded = await self._vision.encode(images, request_id, self._config.request_timeout_s)
        self._metrics.images.inc(len(images))
        self._metrics.encode_seconds.observe(time.monotonic() - started)
        return encoded


def _with_features(
    content: str | list[TextPart | ImageUrlPart], features: Iterator[EncodedImage]
) -> str | list[dict[str, Any]]:
    """A message's content for the language server: each image takes the next features."""
    if isinstance(content, str):
        return content
    return [embeds_part(next(features)) if isinstance(part, ImageUrlPart) else part.model_dump() for part in content]


async def _together(model: Awaitable[str], encoded: Awaitable[list[EncodedImage]]) -> tuple[str, list[EncodedImage]]:
    """Both results; the first error cancels the other."""
    tasks = [asyncio.ensure_future(model), asyncio.ensure_future(encoded)]
    try:
        first, second = await asyncio.gather(*tasks)
        return first, second
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def late(config: GatewayConfig) -> ApiError:
    """504: the deadline of the request has passed."""
    return ApiError(504, f"the answer took longer than {config.request_timeout_s:g} s", "deadline_exceeded")


def create_app(config: GatewayConfig) -> FastAPI:
    """The gateway's application."""
    metrics = GatewayMetrics()
    started: dict[str, Gateway] = {}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        started["gateway"] = gateway = Gateway(config, metrics)
        yield
        await gateway.close()

    app = FastAPI(title="Fovea gateway", lifespan=lifespan)
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes, timeout_s=config.body_timeout_s)
    app.add_middleware(metrics.middleware)
    add_error_handlers(app)

    @app.get("/healthz", responses={503: {"description": "a predictor is down"}})
    async def healthz() -> JSONResponse:
        state = await started["gateway"].health()
        return JSONResponse(state, 200 if state["status"] == "ok" else 503)

    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[ModelCard(id=config.model_name)])

    @app.get("/metrics")
    async def metrics_text() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/v1/chat/completions", responses=_RESPONSES)
    async def chat(body: GatewayChatRequest, request: Request) -> Response:
        return await _answer(started["gateway"], config, body, request)

    return app


async def _answer(gateway: Gateway, config: GatewayConfig, body: GatewayChatRequest, request: Request) -> Response:
    request_id: str = request.state.request_id
    deadline = time.monotonic() + config.request_timeout_s
    async with AsyncExitStack() as held:
        await held.enter_async_context(gateway.slot())
        try:
            async with asyncio.timeout(config.request_timeout_s):
                upstream = await unless_gone(request, gateway.prepare(body, request_id))
                if not body.stream:
                    return JSONResponse(await unless_gone(request, gateway.complete(upstream, request_id)))
                events = await unless_gone(request, gateway.start_stream(upstream, request_id, held, deadline))
        except TimeoutError:
            raise late(config) from None
        except ClientGone:
            return Response(status_code=499)
        return HeldStream(events, held.pop_all())


def main(argv: list[str]) -> None:
    """Serve until SIGTERM."""
    config, _, announcement = parse_arguments(GatewayConfig, argv, model=False)
    logging.basicConfig(level=logging.WARNING)
    bound = bind(config.host, config.port)
    announce(announcement, bound.getsockname()[1])
    serve_http(create_app(config), bound, config.max_connections)


if __name__ == "__main__":
    run_main(main)
