"""Batched greedy decoding for the language predictor, on one worker thread."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from prometheus_client import Counter, Gauge, Histogram

from model.data.errors import InputError
from model.families.generation import Completion, Request, generate, prompt_ids
from model.flash.checkpoint import load_model, load_processor
from serving.config import LanguageServerConfig
from serving.microbatch import MicroBatcher

_QUEUED = Gauge("fovea_language_queue_requests", "Requests that wait for a batch")
_BATCH = Histogram("fovea_language_batch_requests", "Requests decoded together", buckets=(1, 2, 4, 8, 16, 32))
_PROMPT = Counter("fovea_language_prompt_tokens_total", "Prompt tokens of answered requests")
_ANSWER = Counter("fovea_language_completion_tokens_total", "Tokens generated")


@dataclass
class Job:
    """One request on its way through the engine.

    ``pieces`` receives new text as it is generated, and is read on ``loop``.
    """

    request: Request
    max_tokens: int
    loop: asyncio.AbstractEventLoop
    pieces: "asyncio.Queue[str]" = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)


class LanguageEngine:
    """The language half of a model directory, answering batches.

    Args:
        directory: model directory.
        config: batching and precision.

    Raises:
        InputError: the directory is missing or incomplete.
    """

    def __init__(self, directory: Path, config: LanguageServerConfig) -> None:
        dtype = getattr(torch, config.dtype)
        self._model = load_model(directory, "language", dtype=dtype, device=config.device)
        self._processor = load_processor(directory)
        text = self._model.config.text_config
        self.hidden_size: int = text.hidden_size
        self.context: int = text.max_position_embeddings
        added = self._processor.tokenizer.get_added_tokens_decoder().values()
        self._special = tuple(token.content for token in added if token.special)
        self._batcher: MicroBatcher[Job, Completion] = MicroBatcher(
            self._answer,
            max_cost=config.max_batch_requests,
            max_wait_s=config.batch_wait_ms / 1000,
            queue_cost=config.queue_requests,
            name="decode",
        )

    def check_text(self, text: str) -> None:
        """Refuse text that the tokenizer would read as control tokens: it could forge turns or images.

        Raises:
            InputError: it holds one.
        """
        if found := next((token for token in self._special if token in text), None):
            raise InputError(f"text must not contain the reserved token {found!r}")

    def admit(self, request: Request, wanted: int | None, default: int) -> int:
        """Most tokens that the answer to ``request`` may have: ``wanted``, or ``default`` as far as the context goes.

        Raises:
            InputError: the prompt, or the prompt with ``wanted`` tokens, exceeds the context.
        """
        prompt = len(prompt_ids(self._processor, request))
        left = self.context - prompt
        if left < (wanted or 1):
            asked = f" and max_tokens is {wanted}" if wanted else ""
            raise InputError(f"the prompt has {prompt} tokens{asked}; the model's context is {self.context}")
        return wanted or min(default, left)

    async def answer(self, job: Job) -> AsyncIterator[str | Completion]:
        """New text piece by piece, the completion last. Leaving the iteration frees the request's slot.

        Raises:
            QueueFull: too many requests wait.
        """
        future = asyncio.wrap_future(self._batcher.submit(job))
        _QUEUED.set(self._batcher.waiting_cost)
        sent = ""
        try:
            while not future.done():
                piece = asyncio.ensure_future(job.pieces.get())
                await asyncio.wait({piece, future}, return_when=asyncio.FIRST_COMPLETED)
                if not piece.done():
                    piece.cancel()
                    continue
                sent += piece.result()
                yield piece.result()
            completion = future.result()
            # Text still in the queue, and bytes of a character that never became whole.
            if completion.text != sent and completion.text.startswith(sent):
                yield completion.text.removeprefix(sent)
            yield completion
        finally:
            job.cancelled.set()
            future.cancel()

    def close(self) -> None:
        """End the worker thread after its batch."""
        self._batcher.close()

    def _answer(self, jobs: list[Job]) -> list[Completion]:
        _BATCH.observe(len(jobs))
        _QUEUED.set(self._batcher.waiting_cost)

        def on_token(index: int, token: int, text: str) -> bool:
            job = jobs[index]
            if text:
                job.loop.call_soon_threadsafe(job.pieces.put_nowait, text)
            return not job.cancelled.is_set()

        limits = [job.max_tokens for job in jobs]
        completions = generate(self._model, self._processor, [job.request for job in jobs], limits, on_token)
        for completion in completions:
            _PROMPT.inc(completion.prompt_tokens)
            _ANSWER.inc(len(completion.token_ids))
        return completions
