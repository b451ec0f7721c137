"""The part of the OpenAI chat-completions API that Fovea speaks. Imports no torch.

Decoding is greedy, one answer a request: whatever asks for more is refused in one clear line, never ignored.
Parameters that cannot change a greedy answer (``seed``, ``top_p``, ``user``, ...) are accepted.
"""

import time
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

# Words that stand for media or turns in a rendered prompt: a user's text that held one could forge either.
# Written out: ``model.data.schema`` needs pyarrow, which the gateway's environment does not have. A test compares them.
RESERVED = (
    *("<image>", "<video>", "<img>", "</img>", "<IMG_CONTEXT>", "<|im_start|>", "<|im_end|>"),
    *("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class TextPart(_Strict):
    """Text of a message."""

    type: Literal["text"]
    text: str

    @field_validator("text")
    @classmethod
    def _no_reserved(cls, value: str) -> str:
        return refuse_reserved(value)


class ImageUrl(_Strict):
    """Where an image is."""

    url: str
    """``data:image/...;base64,...``, or an http(s) URL of an allowed host."""
    detail: Literal["auto", "low", "high"] = "auto"
    """Accepted, without effect: the tiling decides."""


class ImageUrlPart(_Strict):
    """An image, for the gateway."""

    type: Literal["image_url"]
    image_url: ImageUrl


class ImageEmbedsPart(_Strict):
    """Features of an image, for the language predictor."""

    type: Literal["image_embeds"]
    image_embeds: str
    """Base64 of ``.npy`` or ``torch.save`` bytes of a [rows, hidden] tensor."""
    uuid: str | None = Field(None, max_length=256)


Part = TypeVar("Part")


class Message(_Strict, Generic[Part]):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Part]
    name: str | None = Field(None, max_length=64)

    @field_validator("content")
    @classmethod
    def _no_reserved(cls, value: str | list[Part]) -> str | list[Part]:
        return refuse_reserved(value) if isinstance(value, str) else value


class StreamOptions(_Strict):
    """What a stream carries beside its text."""

    include_usage: bool = False
    include_obfuscation: bool = False
    """Accepted, without effect."""


class ChatRequest(_Strict, Generic[Part]):
    """A chat completion. Keys that are not listed are refused."""

    model: str = Field(min_length=1, max_length=256)
    messages: list[Message[Part]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    """Absent or 0: decoding is greedy."""
    n: Literal[1] | None = None
    stop: None = None
    """Not supported: an answer ends at the end-of-turn token."""
    logprobs: Literal[False] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    top_p: float | None = Field(None, gt=0, le=1)
    """Accepted, without effect on a greedy answer."""
    seed: int | None = None
    """Accepted, without effect on a greedy answer."""
    user: str | None = Field(None, max_length=256)
    """Accepted, without effect."""

    @field_validator("temperature")
    @classmethod
    def _greedy(cls, value: float | None) -> float | None:
        if value:
            raise ValueError("sampling is not supported: leave temperature out or set it to 0")
        return value

    @property
    def token_limit(self) -> int | None:
        """Most tokens of the answer, under either of its names."""
        return self.max_completion_tokens or self.max_tokens


GatewayPart = Annotated[TextPart | ImageUrlPart, Field(discriminator="type")]
LanguagePart = Annotated[TextPart | ImageEmbedsPart, Field(discriminator="type")]


class GatewayChatRequest(ChatRequest[GatewayPart]):
    """A chat completion with text and image URLs."""


class LanguageChatRequest(ChatRequest[LanguagePart]):
    """A chat completion with text and image features."""


class ErrorDetail(BaseModel):
    """OpenAI's description of an error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """OpenAI's error envelope."""

    error: ErrorDetail


class ModelCard(BaseModel):
    """One served model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "fovea"


class ModelList(BaseModel):
    """The served models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Usage(BaseModel):
    """Token counts; visual tokens count as prompt tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


def refuse_reserved(text: str) -> str:
    """``text``, unless it holds a reserved word, or half a surrogate pair, which no tokenizer can encode.

    Raises:
        ValueError: it does.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("text must not contain lone surrogates") from None
    if found := next((word for word in RESERVED if word in text), None):
        raise ValueError(f"text must not contain the reserved word {found!r}; send media as parts")
    return text


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    """Usage with its total."""
    total = prompt_tokens + completion_tokens
    return Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, total_tokens=total)


def completion_body(identity: str, model: str, text: str, finish_reason: str, used: Usage) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
    return {
        "id": identity,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "usage": used.model_dump(),
    }


def chunk_body(
    identity: str,
    model: str,
    created: int,
    delta: dict[str, str] | None,
    finish_reason: str | None = None,
    used: Usage | None = None,
) -> dict[str, Any]:
    """One event of a stream; without ``delta`` and ``finish_reason`` it is the closing event that carries the usage."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}]
    body = {
        "id": identity,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": choices,
    }
    return body if used is None else body | {"usage": used.model_dump()}
