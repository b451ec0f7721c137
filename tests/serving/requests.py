"""Images and messages as OpenAI clients send them. Imports no torch."""

import base64
import io

import numpy as np
from PIL import Image


def png(width: int = 40, height: int = 30, seed: int = 0) -> bytes:
    """A random image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(image: bytes) -> str:
    """An image inside a request."""
    return "data:image/png;base64," + base64.b64encode(image).decode()


def ask(text: str, *images: bytes) -> list[dict]:
    """Messages: images first, the question last."""
    parts = [{"type": "image_url", "image_url": {"url": data_uri(image)}} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
