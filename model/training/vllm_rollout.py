"""Rollouts from a vLLM server in its development mode (``VLLM_SERVER_DEV_MODE=1``), whose weights follow the trainer's.

The server samples from other numbers than the trainer would: its kernels round differently. So every answer comes with
the log-probabilities that the server saw, and the objective corrects for the difference (``truncated_importance``).
Images are sent as they are stored; the server must read every prompt as the trainer does, and that is checked.
"""

import base64
import json
import socket
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from hashlib import sha256
from threading import Lock
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import httpx

from model.data.errors import InputError
from model.data.schema import IMAGE_PLACEHOLDER, Row
from model.families.interface import Network, Processor
from model.training.rollout import Query, Response, prefix_ids
from model.training.sampling import Sampling, answer_text, sampleable_ids
from model.training.stopping import give_up_if_requested
from model.training.weight_transfer import apart

_T = TypeVar("_T")
_MOST_REPLY_BYTES = 1 << 30
_ASKED_EVERY_S = 0.2
"""How often somebody who waits for answers looks whether the run is to stop."""


class WeightTransfer(Protocol):
    """Brings new weights to the server (model/training/weight_transfer.py)."""

    def send(self, network: Network, server: "VllmServer") -> None:
        """Called while no request is running. The network is whole.

        Raises:
            InputError: the server refuses them.
        """


class VllmServer:
    """The few calls of a vLLM server that rollouts need.

    Args:
        url: where it listens, without a path.
        timeout_s: of one call: the longest answers of a whole group.
    """

    def __init__(self, url: str, timeout_s: float = 3600.0) -> None:
        # A neighbour, never behind a proxy of the environment.
        self._client = httpx.Client(base_url=url, timeout=httpx.Timeout(timeout_s, connect=5.0), trust_env=False)
        self.url = url
        self._connections: WeakSet[socket.socket] = WeakSet()
        self._lock, self._given_up = Lock(), False

    def post(self, path: str, body: dict[str, Any] | None = None, **query: str) -> Any:
        """The JSON of the reply; None of an empty one.

        Raises:
            InputError: nobody answers, or the server refuses.
        """
        return self._ask("POST", path, body, query)

    def get(self, path: str) -> Any:
        """The JSON of the reply.

        Raises:
            InputError: nobody answers, or the server refuses.
        """
        return self._ask("GET", path)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None, query: Any = None) -> Any:
        try:
            trace = {"trace": self._note_connection}
            with self._client.stream(method, path, json=body, params=query, extensions=trace) as reply:
                content = self._read(reply, path)
        except httpx.HTTPError as error:
            raise InputError(f"vLLM at {self.url}: {path}: {type(error).__name__}: {error}") from error
        if reply.is_success:
            try:
                return json.loads(content) if content else None
            except ValueError as error:
                raise InputError(f"vLLM at {self.url}: {path}: the reply is not JSON: {_one_line(content)}") from error
        hint = "; start it with VLLM_SERVER_DEV_MODE=1" if reply.status_code == 404 else ""
        raise InputError(f"vLLM at {self.url}: {path}: status {reply.status_code}: {_one_line(content)}{hint}")

    def _read(self, reply: httpx.Response, path: str) -> bytes:
        parts, size = [], 0
        for part in reply.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > _MOST_REPLY_BYTES:
                raise InputError(f"vLLM at {self.url}: {path}: the reply has more than {_MOST_REPLY_BYTES} bytes")
        return b"".join(parts)

    def _note_connection(self, event: str, info: dict[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            connection = info["return_value"].get_extra_info("socket")
            with self._lock:
                self._connections.add(connection)
                if self._given_up:
                    _shut(connection)

    def give_up(self) -> None:
        """End the requests that other threads wait for: each fails at once, and the server drops its work. For good:
        later ones fail too."""
        with self._lock:
            self._given_up = True
            for connection in self._connections:
                _shut(connection)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _shut(connection: socket.socket) -> None:
    # Closing alone would leave a thread waiting that reads from it.
    with suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RDWR)


class VllmSampler:
    """The rollout engine that asks a vLLM server.

    Answers are reproducible as far as the server is: it draws them from a seed made of (seed, row id, prefix), but
    rounds differently with other requests beside them.

    Args:
        server: serves the model directory that training started from, or one of the same configuration.
        processor: of the same model.
        vocabulary: rows of the model's head.
        context: of the model, in tokens: an answer is cut where it ends. The server may not be started with less.
        transfer: how new weights reach the server.
        model: the name that it serves the model under.
        concurrency: groups that are asked for at the same time; the server queues them.
    """

    def __init__(
        self,
        server: VllmServer,
        processor: Processor,
        vocabulary: int,
        context: int,
        transfer: WeightTransfer,
        *,
        model: str,
        concurrency: int = 64,
    ) -> None:
        self.server, self.processor, self.transfer = server, processor, transfer
        self.model, self.context, self.concurrency = model, context, concurrency
        self._allowed = sampleable_ids(processor.tokenizer, processor.eos_token_id, vocabulary)

    def refresh(self, network: Network) -> None:
        """Give the server the weights of ``network``, and let it forget what it computed with the old ones.

        Raises:
            InputError: the server cannot be reached or refuses them.
            Interrupted: the process was asked to stop while it trains. The server may stay paused, until the next
                refresh.
        """
        refreshed = apart(partial(self._refresh, network), network.device)
        try:
            _awaited(refreshed)
        except BaseException:
            self.server.give_up()
            raise

    def _refresh(self, network: Network) -> None:
        self.server.post("/pause", mode="wait")
        try:
            self.transfer.send(network, self.server)
            for cache in ("prefix", "mm", "encoder"):
                self.server.post(f"/reset_{cache}_cache")
        finally:
            self.server.post("/resume")

    def sample(self, queries: Sequence[Query], count: int, sampling: Sampling, seed: int) -> list[list[Response]]:
        """See ``RolloutEngine``.

        Raises:
            InputError: names the row that cannot be asked or whose prompt the server reads otherwise than the trainer.
            Interrupted: the process was asked to stop while it trains.
        """
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="vllm") as pool:
            asked = [pool.submit(self._group, query, count, sampling, seed) for query in queries]
            try:
                return [_awaited(group) for group in asked]
            except BaseException:
                # The pool waits for what is running, which may take as long as the longest answers.
                pool.shutdown(wait=False, cancel_futures=True)
                self.server.give_up()
                raise

    def _group(self, query: Query, count: int, sampling: Sampling, seed: int) -> list[Response]:
        prompt = [*self.processor.question(query.row).input_ids, *prefix_ids(self.processor, query)]
        if len(prompt) >= self.context:
            raise InputError(
                f"row {query.row['id']}: prompt has {len(prompt)} tokens; the model's context is {self.context}"
            )
        body = {
            "model": self.model,
            "messages": conversation(query),
            "n": count,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            # More than the context has room for is an error of the request, and would end the run.
            "max_completion_tokens": min(sampling.max_new_tokens, self.context - len(prompt)),
            "seed": request_seed(seed, query),
            "allowed_token_ids": self._allowed,
            "logprobs": True,
            "return_token_ids": True,
            "add_generation_prompt": not query.prefix,
            "continue_final_message": bool(query.prefix),
        }
        try:
            reply = self.server.post("/v1/chat/completions", body)
        except InputError as error:
            raise InputError(f"row {query.row['id']}: {error}") from error
        self._check_prompt(query, prompt, reply)
        try:
            group = [self._response(choice) for choice in sorted(reply["choices"], key=lambda choice: choice["index"])]
            if len(group) != count:
                raise ValueError(f"{len(group)} answers")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"row {query.row['id']}: vLLM at {self.server.url} does not give {count} answers with token ids and a "
                f"log-probability of each ({type(error).__name__}: {error})"
            ) from error
        return group

    def _check_prompt(self, query: Query, expected: Sequence[int], reply: Any) -> None:
        given = reply.get("prompt_token_ids") if isinstance(reply, dict) else None
        if given != expected:
            read = "no tokens" if given is None else f"{len(given)} tokens"
            raise InputError(
                f"row {query.row['id']}: vLLM at {self.server.url} reads its prompt as {read}, other ones than the "
                f"{len(expected)} that training sees; does it serve the same model and tokenizer?"
            )

    def _response(self, choice: dict[str, Any]) -> Response:
        ids = choice["token_ids"]
        values = [token["logprob"] for token in choice["logprobs"]["content"]]
        if len(values) != len(ids):
            raise ValueError(f"{len(values)} log-probabilities of {len(ids)} tokens")
        reason = "stop" if choice["finish_reason"] == "stop" else "length"
        text = answer_text(self.processor.tokenizer, ids, self.processor.eos_token_id)
        return Response(ids, values, text, reason)


def _awaited(future: "Future[_T]") -> _T:
    while not wait([future], _ASKED_EVERY_S).done:
        give_up_if_requested()
    return future.result()


def request_seed(seed: int, query: Query) -> int:
    """A seed below 2**31 of one group, from (seed, row id, prefix)."""
    digest = sha256(json.dumps([seed, query.row["id"], query.prefix]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def conversation(query: Query) -> list[dict[str, Any]]:
    """The messages of a query as OpenAI's chat format has them, images as data URLs where their placeholders stand.

    Raises:
        InputError: the row shows a video, or an image that is not stored in it.
    """
    row = query.row
    images = iter(_data_urls(row))
    messages: list[dict[str, Any]] = []
    for message in row["messages"][:-1]:
        first, *others = message["content"].split(IMAGE_PLACEHOLDER)
        parts = [{"type": "text", "text": first}] if first else []
        for text in others:
            parts.append({"type": "image_url", "image_url": {"url": next(images)}})
            # The chat template ends the line of an image.
            parts += [{"type": "text", "text": text.removeprefix("\n")}] if text.removeprefix("\n") else []
        messages.append({"role": message["role"], "content": parts if others else message["content"]})
    if query.prefix:
        messages.append({"role": "assistant", "content": query.prefix})
    return messages


def _data_urls(row: Row) -> list[str]:
    urls = []
    for medium in row["media"]:
        if medium["kind"] != "image" or medium["bytes"] is None:
            raise InputError(f"row {row['id']}: a vLLM server is sent stored images only, no videos and no files")
        urls.append("data:image;base64," + base64.b64encode(medium["bytes"]).decode())
    return urls


def _one_line(content: bytes) -> str:
    return " ".join(content[:500].decode("utf-8", "replace").split())
