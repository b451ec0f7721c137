"""The language predictor's HTTP face: chat completions with ``image_embeds`` parts, as stock vLLM takes them."""

import asyncio
import base64
import binascii
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from model.data.errors import InputError
from model.data.schema import IMAGE_PLACEHOLDER
from model.families.generation import Completion
from model.families.generation import Request as Prompt
from serving.asgi import ApiError, BodyLimit, ClientGone, HeldStream, add_error_handlers, server_sent_event, unless_gone
from serving.config import LanguageServerConfig
from serving.features import unpack_features
from serving.language_engine import Job, LanguageEngine
from serving.microbatch import QueueFull
from serving.openai_schema import (
    ImageEmbedsPart,
    LanguageChatRequest,
    ModelCard,
    ModelList,
    TextPart,
    chunk_body,
    completion_body,
    usage,
)


def create_app(engine: LanguageEngine, config: LanguageServerConfig) -> FastAPI:
    """The application that answers from ``engine``."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(title="Fovea language predictor", lifespan=lifespan)
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    add_error_handlers(app)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[ModelCard(id=config.model_name)])

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @app.post("/v1/chat/completions")
    async def chat(body: LanguageChatRequest, request: Request) -> Response:
        job = await _admit(engine, config, body)
        identity = f"chatcmpl-{uuid.uuid4().hex}"
        pieces = engine.answer(job)
        try:
            first = await unless_gone(request, anext(pieces))
            if body.stream:
                include_usage = bool(body.stream_options and body.stream_options.include_usage)
                held = AsyncExitStack()
                held.push_async_callback(pieces.aclose)
                return HeldStream(_stream(first, pieces, identity, config.model_name, include_usage), held)
            completion = await unless_gone(request, _last(first, pieces))
        except QueueFull:
            raise ApiError(429, "the language predictor is busy", "overloaded", retry_after=1) from None
        except ClientGone:
            await pieces.aclose()
            return Response(status_code=499)
        used = usage(completion.prompt_tokens, len(completion.token_ids))
        return JSONResponse(
            completion_body(identity, config.model_name, completion.text, completion.finish_reason, used)
        )

    return app


async def _admit(engine: LanguageEngine, config: LanguageServerConfig, body: LanguageChatRequest) -> Job:
    """The job of a request, off the event loop: features and prompts are large.

    Raises:
        ApiError: another model is asked for, or the request is not one that this model can answer.
    """
    if body.model != config.model_name:
        raise ApiError(404, f"no such model: {body.model[:64]!r}; served is {config.model_name!r}", "model_not_found")
    try:
        prompt, max_tokens = await asyncio.to_thread(_prepare, engine, config, body)
    except InputError as error:
        raise ApiError(400, str(error), "invalid_request") from None
    return Job(prompt, max_tokens, asyncio.get_running_loop())


def _prepare(engine: LanguageEngine, config: LanguageServerConfig, body: LanguageChatRequest) -> tuple[Prompt, int]:
    parts = [part for message in body.messages if not isinstance(message.content, str) for part in message.content]
    images = [part for part in parts if isinstance(part, ImageEmbedsPart)]
    if len(images) > config.max_images:
        raise InputError(f"{len(images)} images in a request; allowed are {config.max_images}")
    messages = [{"role": message.role, "content": _text_of(message.content, engine)} for message in body.messages]
    if sum(len(message["content"]) for message in messages) > config.max_text_chars:
        raise InputError(f"the text is longer than {config.max_text_chars} characters")
    features = [
        unpack_features(_decode(part.image_embeds), hidden=engine.hidden_size, max_rows=config.max_feature_rows)
        for part in images
    ]
    prompt = Prompt(messages, features)
    return prompt, engine.admit(prompt, body.token_limit, config.default_max_tokens)


def _text_of(content: str | list[Any], engine: LanguageEngine) -> str:
    """The text of a message; each image becomes a placeholder on a line of its own, as in the chat template."""
    if isinstance(content, str):
        content = [TextPart(type="text", text=content)]
    text = []
    for part in content:
        if isinstance(part, TextPart):
            engine.check_text(part.text)
            text.append(part.text)
        else:
            text.append(IMAGE_PLACEHOLDER + "\n")
    return "".join(text)


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("image_embeds: not base64") from None


async def _last(first: str | Completion, pieces: AsyncIterator[str | Completion]) -> Completion:
    last = first
    async for piece in pieces:
        last = piece
    assert isinstance(last, Completion)
    return last


async def _stream(
    first: str | Completion,
    pieces: AsyncIterator[str | Completion],
    identity: str,
    model: str,
    include_usage: bool,
) -> AsyncIterator[bytes]:
    """The answer as server-sent events."""
    created = int(time.time())

    def event(delta: dict[str, str] | None, reason: str | None = None, completion: Completion | None = None) -> bytes:
        used = None if completion is None else usage(completion.prompt_tokens, len(completion.token_ids))
        return server_sent_event(chunk_body(identity, model, created, delta, reason, used))

    yield event({"role": "assistant", "content": ""})
    piece: str | Completion = first
    while isinstance(piece, str):
        yield event({"content": piece})
        piece = await anext(pieces)
    yield event({}, piece.finish_reason)
    if include_usage:
        yield event(None, completion=piece)
    yield server_sent_event("[DONE]")
