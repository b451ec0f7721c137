"""Language servers that misbehave, and a gateway in this process. Imports no torch."""

import asyncio
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from fastapi.testclient import TestClient

from serving.config import GatewayConfig
from serving.gateway import create_app

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def unused_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that takes connections and never says a word, as a stopped process does."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield server.getsockname()[1]


@contextmanager
def language_server(chat: bytes | None) -> Iterator[str]:
    """URL of a language server that is healthy and answers chats with these raw bytes; None hangs."""
    loop = asyncio.new_event_loop()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.read(1)
        if not head:
            writer.close()
            return
        head += await reader.readuntil(b"\r\n\r\n")
        if length := re.search(rb"(?i)content-length: ([0-9]+)", head):
            await reader.readexactly(int(length[1]))
        if head.startswith(b"GET /v1/models"):
            body = b'{"data": [{"id": "upstream-name"}]}'
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        elif head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        elif chat is None:
            await reader.read()
        else:
            writer.write(chat)
        await writer.drain()
        writer.close()

    server = loop.run_until_complete(asyncio.start_server(handle, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@contextmanager
def gateway(
    vision_port: int | None = None, language_url: str | None = None, **settings: object
) -> Iterator[TestClient]:
    """A gateway in this process; predictors that are left out are down."""
    config = GatewayConfig(
        vision_target=f"127.0.0.1:{vision_port or unused_port()}",
        language_url=language_url or f"http://127.0.0.1:{unused_port()}",
        **({"probe_timeout_s": 30.0} | settings),
    )
    with TestClient(create_app(config), raise_server_exceptions=False) as client:
        yield client


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Return once ``condition`` holds; fails after a while."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.02)
