"""What both HTTP servers share: OpenAI-style errors, a bound on bodies, request ids, uvicorn. Imports no torch."""

import asyncio
import json
import logging
import re
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.openai_schema import ErrorBody, ErrorDetail

log = logging.getLogger("serving")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DRAIN_FACTOR = 4
SERVER_ERROR, USER_ERROR = "server_error", "invalid_request_error"
Result = TypeVar("Result")


class ApiError(Exception):
    """An answer with an error status.

    Args:
        status: HTTP status; below 500 it is the user's mistake.
        message: one line for the user.
        code: short name for programs.
        retry_after: seconds after which trying again makes sense.
    """

    def __init__(self, status: int, message: str, code: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.retry_after = status, message, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error envelope."""
        kind = SERVER_ERROR if self.status >= 500 else "rate_limit_error" if self.status == 429 else USER_ERROR
        return ErrorBody(error=ErrorDetail(message=self.message, type=kind, code=self.code)).model_dump()

    def response(self) -> JSONResponse:
        """The HTTP response."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return JSONResponse(self.body, self.status, headers)


class ClientGone(Exception):
    """The client closed its connection; nobody reads the answer."""


class HeldStream(StreamingResponse):
    """Server-sent events that hold resources (a slot, a connection) until the last event, or the client, is gone.

    The resources are the response's and not the generator's: one that is never iterated would never release them.
    """

    def __init__(self, events: AsyncIterator[bytes], held: AsyncExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, then release."""
        async with self._held:
            await super().__call__(scope, receive, send)


class BodyLimit:
    """ASGI middleware: gives each request an id, and refuses a body over ``max_bytes`` or slower than ``timeout_s``."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float = 60.0) -> None:
        self._app, self._max_bytes, self._timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        identity = headers.get(b"x-request-id", b"").decode("latin-1")
        if not _REQUEST_ID.fullmatch(identity):
            identity = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = identity

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", identity.encode())]
            await send(message)

        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(headers.get(b"content-length", b""), receive)
        except TimeoutError:
            error = ApiError(408, f"the body did not arrive within {self._timeout_s:g} s", "request_timeout")
            await error.response()(scope, receive, send_with_id)
            return
        except ApiError as error:
            await error.response()(scope, receive, send_with_id)
            return
        except ClientGone:
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send_with_id)

    async def _read(self, declared: bytes, receive: Receive) -> bytes:
        """The whole body. Refused ones are read on for a while: a client that is still writing sees no answer."""
        limit = self._max_bytes
        too_large = declared.isdigit() and int(declared) > limit
        if too_large and int(declared) > limit * _DRAIN_FACTOR:
            raise self._refusal()
        chunks: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientGone
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
            too_large = too_large or size > limit
            if too_large:
                chunks.clear()
                if size > limit * _DRAIN_FACTOR:
                    break
            else:
                chunks.append(message.get("body", b""))
        if too_large:
            raise self._refusal()
        return b"".join(chunks)

    def _refusal(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._max_bytes} bytes", "request_too_large")


def add_error_handlers(app: FastAPI) -> None:
    """Make ``app`` answer every error in OpenAI's form, and a client's mistake with 400."""

    async def on_api_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def on_validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        # Of a union's errors the deepest is about the variant that was meant.
        first = max(error.errors(), key=lambda found: len(found["loc"]))
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        # The offending input stays out of the message: it may be megabytes, or not even encodable.
        message = f"{where}: {first['msg']}".encode("utf-8", "replace").decode()
        return ApiError(400, message[:500], "invalid_request").response()

    async def on_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        answer = ApiError(error.status_code, str(error.detail), "http_error").response()
        answer.headers.update(error.headers or {})
        return answer

    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        log.error("request %s failed", getattr(request.state, "request_id", "-"), exc_info=error)
        return ApiError(500, "internal error", "internal_error").response()

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_bug)


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of ``work``, which is cancelled when the client closes its connection.

    Raises:
        ClientGone: it did.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for pending in (task, watch):
            pending.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def server_sent_event(body: dict[str, Any] | str) -> bytes:
    """``body`` as one server-sent event."""
    return f"data: {body if isinstance(body, str) else json.dumps(body, separators=(',', ':'))}\n\n".encode()


def serve_http(app: ASGIApp, bound: socket.socket, max_connections: int | None = None) -> None:
    """Serve ``app`` on ``bound`` until SIGTERM or SIGINT; open streams get three seconds to end."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="on",
        limit_concurrency=max_connections,
        timeout_graceful_shutdown=3,
    )
    uvicorn.Server(config).run(sockets=[bound])
