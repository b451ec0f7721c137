"""Greedy generation for every family, batched; the second half of ``encode`` / ``generate``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import DynamicCache

from model.data.errors import InputError
from model.data.schema import Row
from model.families.interface import Network, Processor
from model.families.qwen_network import VisualFeatures

# on_token(request index, token id, new text) -> False cancels that request.
TokenFunction = Callable[[int, int, str], bool | None]


@dataclass
class Request:
    """Messages with ``<image>`` and ``<video>`` placeholders, and what the vision half gave for each in order: for
    InternVL features [rows, D], for the M-RoPE families the whole result of ``encode_batch``."""

    messages: Sequence[dict[str, str]]
    features: Sequence[Tensor | VisualFeatures] = field(default_factory=list)


@dataclass
class Completion:
    """A finished answer; ``finish_reason`` is stop, length or cancelled."""

    text: str
    token_ids: list[int]
    prompt_tokens: int
    finish_reason: str


class Prompt(NamedTuple):
    """Token ids [T], and positions [3, T] for the M-RoPE families; None counts 0, 1, 2, ..."""

    ids: Sequence[int]
    positions: np.ndarray | None


def prompt_ids(processor: Processor, request: Request) -> list[int]:
    """Token ids of a request's prompt, an open assistant turn at its end.

    Raises:
        InputError: placeholders and features do not fit.
    """
    return processor.prompt(request.messages, request.features).input_ids


class _Batch:
    """Prompts being decoded together: padded on the left, with one key-value cache."""

    def __init__(self, network: Network, pad_id: int, prompts: Sequence[Prompt], rows: Tensor | None) -> None:
        self.network = network
        width, device = max(len(prompt.ids) for prompt in prompts), network.device
        ids = torch.full((len(prompts), width), pad_id, device=device)
        self.mask_BT = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt.ids) :] = torch.tensor(prompt.ids, device=device)
            self.mask_BT[i, width - len(prompt.ids) :] = 1
        self.cache = DynamicCache(config=network.config.text_config)
        self.delta_B = torch.tensor([_delta(prompt) for prompt in prompts], device=device)
        given = network.language_inputs(ids, None if rows is None else rows.to(device))
        self.next_ids = self._step(given, self._prompt_positions(prompts, width))

    def _prompt_positions(self, prompts: Sequence[Prompt], width: int) -> Tensor:
        """[B, T], or [3, B, T] for the M-RoPE families."""
        if prompts[0].positions is None:
            return (self.mask_BT.cumsum(1) - 1).clamp(min=0)
        positions = np.zeros((3, len(prompts), width), np.int64)
        for i, prompt in enumerate(prompts):
            positions[:, i, width - len(prompt.ids) :] = prompt.positions
        return torch.from_numpy(positions).to(self.mask_BT.device)

    def _step(self, given: dict[str, object], positions: Tensor) -> Tensor:
        hidden = self.network.language_model.base_model(
            **given,
            attention_mask=self.mask_BT,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return self.network.head(hidden).argmax(-1)

    def advance(self) -> None:
        """Feed the last tokens; ``next_ids`` [B] become the next ones."""
        # Generated text has one position on every axis: transformers lays [B, 1] over all three.
        positions = (self.mask_BT.sum(1) + self.delta_B)[:, None]
        self.mask_BT = torch.cat([self.mask_BT, torch.ones_like(self.mask_BT[:, :1])], dim=1)
        embeds = self.network.language_model.get_input_embeddings()(self.next_ids[:, None])
        self.next_ids = self._step({"inputs_embeds": embeds}, positions)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        index = torch.tensor(rows, device=self.mask_BT.device)
        self.mask_BT, self.next_ids, self.delta_B = self.mask_BT[index], self.next_ids[index], self.delta_B[index]
        self.cache.batch_select_indices(index)


def _delta(prompt: Prompt) -> int:
    """How far the position of a generated token is from its index: the one after a prompt's largest position is
    next, which a video that lasts longer than it is wide takes beyond the number of tokens, and an image behind."""
    return 0 if prompt.positions is None else int(prompt.positions.max()) + 1 - len(prompt.ids)


def generate(
    network: Network,
    processor: Processor,
    requests: Sequence[Request],
    max_new_tokens: int | Sequence[int],
    on_token: TokenFunction | None = None,
) -> list[Completion]:
    """Answer requests greedily, decoded together.

    A request that ends leaves the batch; the others go on. ``max_new_tokens`` may differ by request.

    Raises:
        InputError: a prompt exceeds the context, or placeholders and features do not fit.
    """
    samples = [processor.prompt(request.messages, request.features) for request in requests]
    prompts = [Prompt(sample.input_ids, sample.positions) for sample in samples]
    given = [feature for request in requests for feature in request.features]
    tensors = [feature if isinstance(feature, Tensor) else feature.features for feature in given]
    rows = torch.cat([tensor.to(network.device) for tensor in tensors]) if tensors else None
    return decode(network, processor, prompts, rows, max_new_tokens, on_token)


@torch.inference_mode()
def decode(
    network: Network,
    processor: Processor,
    prompts: Sequence[Prompt],
    rows: Tensor | None,
    max_new_tokens: int | Sequence[int],
    on_token: TokenFunction | None = None,
) -> list[Completion]:
    """Continue prompts greedily; ``rows`` are the visual rows of all of them in order.

    Raises:
        InputError: a prompt exceeds the context.
    """
    if not prompts:
        return []
    lengths = [len(prompt.ids) for prompt in prompts]
    context = network.config.text_config.max_position_embeddings
    if max(lengths) >= context:
        raise InputError(f"prompt has {max(lengths)} tokens; the model's context is {context}")
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    limits = [min(limit, context - n) for limit, n in zip(limits, lengths, strict=True)]
    batch = _Batch(network, processor.eos_token_id, prompts, rows)
    answers: list[list[int]] = [[] for _ in prompts]
    reasons = ["length"] * len(prompts)
    streams = [DecodeStream(skip_special_tokens=True) for _ in prompts]
    active = list(range(len(prompts)))
    while active:
        staying = []
        for row, token in enumerate(batch.next_ids.tolist()):
            index = active[row]
            if token == processor.eos_token_id:
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
        for ids, n, reason in zip(answers, lengths, reasons, strict=True)
    ]


def answer_rows(
    network: Network,
    processor: Processor,
    rows: Sequence[Row],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[str]:
    """Greedy answers to the questions of dataset rows (their last assistant turn is left out).

    Raises:
        InputError: names the row whose medium or messages cannot be used.
    """
    texts = []
    for start in range(0, len(rows), batch_size):
        samples = [processor.question(row) for row in rows[start : start + batch_size]]
        media = {name: np.concatenate([sample.media[name] for sample in samples]) for name in samples[0].media}
        with torch.inference_mode():
            visual = network.media_rows({name: torch.from_numpy(array) for name, array in media.items()})
        prompts = [Prompt(sample.input_ids, sample.positions) for sample in samples]
        texts += [c.text for c in decode(network, processor, prompts, visual, max_new_tokens)]
        if progress is not None:
            progress("answering", min(start + batch_size, len(rows)), len(rows))
    return texts
