"""Configuration of the three servers: addresses, limits, timeouts. Imports no torch."""

from typing import Literal

from pydantic import Field

from model.config import Section

MIB = 1 << 20


class VisionServerConfig(Section):
    """The vision predictor (Open Inference Protocol over gRPC)."""

    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535)
    """0 takes a free port."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """HTTP port for Prometheus; not served when None."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    threads: int | None = Field(None, ge=1)
    """Threads of torch; its own choice when None."""
    full_resolution: bool = False
    """Show every tile in full, whatever a Flash model's directory says of routing."""
    max_images: int = Field(16, ge=1)
    """Images of one request."""
    max_image_bytes: int = Field(20_000_000, ge=1)
    max_image_pixels: int = Field(40_000_000, ge=1)
    """Width times height, read from the header before anything is decoded."""
    max_batch_tiles: int = Field(32, ge=1)
    """Tiles that go through the tower together."""
    batch_wait_ms: float = Field(2.0, ge=0)
    """Longest wait of a tile for company."""
    queue_tiles: int = Field(512, ge=1)
    """Tiles that may wait; beyond them requests are refused."""
    cache_bytes: int = Field(256 * MIB, ge=0)
    """Size of the cache of packed features."""
    max_message_bytes: int = Field(512 * MIB, ge=1)
    """Largest gRPC message in either direction."""


class LanguageServerConfig(Section):
    """The language predictor (chat completions with ``image_embeds`` parts)."""

    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535)
    model_name: str = "fovea"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    threads: int | None = Field(None, ge=1)
    max_body_bytes: int = Field(512 * MIB, ge=1)
    max_images: int = Field(16, ge=1)
    max_feature_rows: int = Field(16_384, ge=1)
    """Visual tokens of one image."""
    max_text_chars: int = Field(200_000, ge=1)
    default_max_tokens: int = Field(256, ge=1)
    """Used when a request names none (shortened to what the context leaves)."""
    max_batch_requests: int = Field(16, ge=1)
    """Requests decoded together."""
    batch_wait_ms: float = Field(5.0, ge=0)
    queue_requests: int = Field(128, ge=1)
    """Requests that may wait; beyond them requests are refused."""


class GatewayConfig(Section):
    """The gateway: the only server that users reach."""

    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535)
    model_name: str = "fovea"
    """The name users ask for."""
    vision_target: str = Field(min_length=1)
    """``host:port`` of the vision predictor's gRPC."""
    language_url: str = Field(pattern=r"^https?://")
    """Base URL of a language server: our predictor, or stock vLLM."""
    max_body_bytes: int = Field(24 * MIB, ge=1)
    max_messages: int = Field(256, ge=1)
    max_images: int = Field(16, ge=1)
    """Images of one request, all messages together."""
    max_image_bytes: int = Field(16 * MIB, ge=1)
    max_text_chars: int = Field(100_000, ge=1)
    """Characters of one request, all messages together."""
    max_message_bytes: int = Field(512 * MIB, ge=1)
    """Largest gRPC message in either direction."""
    max_in_flight: int = Field(64, ge=1)
    """Requests worked on at once; beyond them 429."""
    max_connections: int = Field(256, ge=1)
    """Open connections, those that are still sending their request included; beyond them 503."""
    connect_timeout_s: float = Field(2.0, gt=0)
    probe_timeout_s: float = Field(3.0, gt=0)
    """Longest wait for a health answer of a predictor."""
    request_timeout_s: float = Field(300.0, gt=0)
    """Deadline of a whole request, its stream included."""
    body_timeout_s: float = Field(60.0, gt=0)
    """Longest time a client may take to send its request."""
    fetch_timeout_s: float = Field(10.0, gt=0)
    """Deadline of one image fetched from an allowed host."""
    allowed_image_hosts: tuple[str, ...] = ()
    """Hosts (``host`` or ``host:port``) that image URLs may name; none by default."""
