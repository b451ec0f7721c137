"""Chat with an OpenAI-compatible endpoint: our own gateway, or another. Imports no torch, but for a critic's sake."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cli.conversation import Conversation, Manner
from model.data.errors import InputError
from model.data.thinking import THINKING_SYSTEM_PROMPT, THINKING_TEMPERATURE, THINKING_TOP_P

_TIMEOUT_S = 300.0


class Endpoint:
    """An endpoint that is asked in the OpenAI dialect.

    Args:
        url: base URL, up to and without /v1.
        model: name under which it serves; the first that it lists when None.
        greedy: it decodes greedily only, as our own servers do.
        critic: chooses among several answers.

    Raises:
        InputError: several answers are wanted of an endpoint that would give the same one each time, or the critic that
            is to choose cannot be opened.
    """

    def __init__(self, url: str, model: str | None, *, greedy: bool, candidates: int, critic: Path | None) -> None:
        if greedy and candidates > 1:
            raise InputError("--best-of: the servers of `fovea serve` decode greedily; name the model's directory")
        self._url, self._model, self._greedy, self._critic = url.rstrip("/"), model, greedy, None
        if candidates > 1:  # before anything is asked: it may not open
            from cli.chat_model import open_critic

            self._critic = open_critic(critic, candidates)

    def answer(self, conversation: Conversation, question: str, manner: Manner) -> str:
        """See ``Answerer``. A single answer is printed as it comes."""
        request: dict[str, Any] = {
            "messages": _messages(conversation, question, manner),
            "max_tokens": manner.max_tokens,
        }
        if manner.sampled and not self._greedy:
            request |= {"temperature": THINKING_TEMPERATURE, "top_p": THINKING_TOP_P, "seed": manner.seed}
        with self._client() as client:
            request["model"] = self._model or self._first_model(client)
            if manner.candidates == 1:
                return _streamed(client, request)
            answers = [
                client.chat.completions.create(**request | {"seed": manner.seed + number}).choices[0].message.content
                for number in range(manner.candidates)
            ]
        from cli.chat_model import choose

        row = conversation.row(question, alone=True)
        chosen = choose(self._critic, row, [answer or "" for answer in answers])
        print(chosen, end="", flush=True)
        return chosen

    def _first_model(self, client: Any) -> str:
        listed = getattr(client.models.list(), "data", None)
        if not listed:
            raise InputError(f"{self._url}: lists no model at /v1/models")
        return listed[0].id

    @contextmanager
    def _client(self) -> Iterator[Any]:
        import httpx
        import openai

        # The gateway is a neighbour, never behind a proxy of the environment.
        http = httpx.Client(trust_env=False, timeout=_TIMEOUT_S)
        with openai.OpenAI(
            base_url=f"{self._url}/v1", api_key="none", max_retries=0, timeout=_TIMEOUT_S, http_client=http
        ) as client:
            try:
                yield client
            except openai.APIConnectionError:
                raise InputError(f"{self._url}: nobody answers; start it with `fovea serve`") from None
            except openai.APIError as error:
                body = error.body if isinstance(error.body, dict) else {}
                raise InputError(f"{self._url}: {body.get('message') or error.message}") from None


def _streamed(client: Any, request: dict[str, Any]) -> str:
    pieces = []
    for event in client.chat.completions.create(**request, stream=True):
        if event.choices:
            pieces.append(event.choices[0].delta.content or "")
            print(pieces[-1], end="", flush=True)
    return "".join(pieces)


def _messages(conversation: Conversation, question: str, manner: Manner) -> list[dict[str, Any]]:
    """The conversation in the dialect: images as data URLs before the first question."""
    images = [
        {
            "type": "image_url",
            "image_url": {"url": f"data:{p.media_type};base64,{base64.b64encode(p.data).decode('ascii')}"},
        }
        for p in conversation.pictures
    ]
    first, *others = conversation.asking(question)
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [*images, {"type": "text", "text": first["content"]}]},
        *({"role": turn["role"], "content": turn["content"]} for turn in others),
    ]
    system = [{"role": "system", "content": THINKING_SYSTEM_PROMPT}] if manner.think else []
    return system + messages
