"""Greedy generation from messages and visual features, batched; the second half of ``encode`` / ``generate``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import DynamicCache

from model.data.chat import render_chat
from model.data.errors import InputError
from model.data.schema import Row
from model.flash.images import row_images
from model.flash.network import FlashModel
from model.flash.processor import FlashProcessor

# on_token(request index, token id, new text) -> False cancels that request.
TokenFunction = Callable[[int, int, str], bool | None]


@dataclass
class Request:
    """Messages with ``<image>`` placeholders, and the features [rows, D] of each image in order."""

    messages: Sequence[dict[str, str]]
    features: Sequence[Tensor] = field(default_factory=list)


@dataclass
class Completion:
    """A finished answer; ``finish_reason`` is stop, length or cancelled."""

    text: str
    token_ids: list[int]
    prompt_tokens: int
    finish_reason: str


def prompt_ids(processor: FlashProcessor, request: Request) -> list[int]:
    """Token ids of a request's prompt, an open assistant turn at its end."""
    segments = render_chat(request.messages, processor.system_prompt, generate=True)
    return processor.tokenize(segments, [len(f) for f in request.features])[0]


class _Batch:
    """Requests being decoded together: left-padded prompts and one key-value cache."""

    def __init__(self, model: FlashModel, processor: FlashProcessor, requests: Sequence[Request]) -> None:
        self.model = model
        prompts = [prompt_ids(processor, request) for request in requests]
        self.prompt_tokens = [len(p) for p in prompts]
        limit = model.config.text_config.max_position_embeddings
        if max(self.prompt_tokens) >= limit:
            raise InputError(f"prompt has {max(self.prompt_tokens)} tokens; the model's context is {limit}")
        width = max(self.prompt_tokens)
        device = model.device
        ids = torch.full((len(prompts), width), processor.eos_token_id, device=device)
        self.mask_BT = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt, device=device)
            self.mask_BT[i, width - len(prompt) :] = 1
        features = [f.to(device) for request in requests for f in request.features]
        embeds = model.embed(ids, torch.cat(features) if features else None)
        self.cache = DynamicCache(config=model.config.text_config)
        positions = (self.mask_BT.cumsum(1) - 1).clamp(min=0)
        self.next_ids = self._step(embeds, positions)

    def _step(self, embeds_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        language = self.model.language_model
        hidden = language.base_model(
            inputs_embeds=embeds_BTD,
            attention_mask=self.mask_BT,
            position_ids=positions_BT,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return language.get_output_embeddings()(hidden).argmax(-1)

    def advance(self) -> None:
        """Feed the last tokens; ``next_ids`` [B] become the next ones."""
        positions = self.mask_BT.sum(1, keepdim=True)
        self.mask_BT = torch.cat([self.mask_BT, torch.ones_like(positions)], dim=1)
        embeds = self.model.language_model.get_input_embeddings()(self.next_ids[:, None])
        self.next_ids = self._step(embeds, positions)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        index = torch.tensor(rows, device=self.mask_BT.device)
        self.mask_BT, self.next_ids = self.mask_BT[index], self.next_ids[index]
        self.cache.batch_select_indices(index)


@torch.inference_mode()
def generate(
    model: FlashModel,
    processor: FlashProcessor,
    requests: Sequence[Request],
    max_new_tokens: int | Sequence[int],
    on_token: TokenFunction | None = None,
) -> list[Completion]:
    """Answer requests greedily, decoded together.

    A request that ends leaves the batch; the others go on. ``max_new_tokens`` may differ by request.

    Raises:
        InputError: a prompt exceeds the context, or placeholders and features differ in number.
    """
    if not requests:
        return []
    limits = [max_new_tokens] * len(requests) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    batch = _Batch(model, processor, requests)
    context = model.config.text_config.max_position_embeddings
    limits = [min(limit, context - n) for limit, n in zip(limits, batch.prompt_tokens, strict=True)]
    answers: list[list[int]] = [[] for _ in requests]
    reasons = ["length"] * len(requests)
    streams = [DecodeStream(skip_special_tokens=True) for _ in requests]
    active = list(range(len(requests)))
    eos = processor.eos_token_id
    while active:
        staying = []
        for row, token in enumerate(batch.next_ids.tolist()):
            index = active[row]
            if token == eos:
                reasons[index] = "stop"
                continue
            answers[index].append(token)
            if on_token is not None:
                delta = streams[index].step(processor.tokenizer, token) or ""
                if on_token(index, token, delta) is False:
                    reasons[index] = "cancelled"
                    continue
            if len(answers[index]) < limits[index]:
                staying.append(row)
        if not staying:
            break
        if len(staying) < len(active):
            batch.keep(staying)
            active = [active[row] for row in staying]
        batch.advance()
    return [
        Completion(processor.decode(ids), ids, n, reason)
        for ids, n, reason in zip(answers, batch.prompt_tokens, reasons, strict=True)
    ]


def answer_rows(
    model: FlashModel,
    processor: FlashProcessor,
    rows: Sequence[Row],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[str]:
    """Greedy answers to the questions of dataset rows (their last assistant turn is left out)."""
    texts = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        requests = requests_of_rows(model, part)
        texts += [c.text for c in generate(model, processor, requests, max_new_tokens)]
        if progress is not None:
            progress("answering", min(start + batch_size, len(rows)), len(rows))
    return texts


def requests_of_rows(model: FlashModel, rows: Sequence[Row]) -> list[Request]:
    """The questions of rows, their images encoded together.

    Raises:
        InputError: a medium cannot be read, or is not in the row.
    """
    features = model.encode_batch([row_images(row) for row in rows])
    return [
        Request(row["messages"][:-1], [image.features for image in images])
        for row, images in zip(rows, features, strict=True)
    ]
