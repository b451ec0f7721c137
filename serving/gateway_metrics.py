"""What the gateway tells Prometheus. Imports no torch."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ROUTES = frozenset({"/v1/chat/completions", "/v1/models", "/healthz", "/metrics"})


class GatewayMetrics:
    """Metrics of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fovea_gateway_requests_total", "Answered requests", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "fovea_gateway_request_seconds", "Time to the last byte", ["route"], registry=self.registry
        )
        self.encode_seconds = Histogram(
            "fovea_gateway_encode_seconds", "Time to read and encode a request's images", registry=self.registry
        )
        self.images = Counter("fovea_gateway_images_total", "Encoded images", registry=self.registry)
        self.in_flight = Gauge("fovea_gateway_in_flight", "Chat requests being worked on", registry=self.registry)
        self.broken_streams = Counter(
            "fovea_gateway_broken_streams_total", "Streams that ended with an error event", registry=self.registry
        )

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """ASGI middleware that counts requests by route and status, and times them."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            # Paths are the client's choice: unknown ones share a label.
            route = scope["path"] if scope["path"] in _ROUTES else "other"
            status = "none"

            async def note_status(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = str(message["status"])
                await send(message)

            started = time.monotonic()
            try:
                await app(scope, receive, note_status)
            finally:
                self.requests.labels(route, status).inc()
                self.seconds.labels(route).observe(time.monotonic() - started)

        return counted
