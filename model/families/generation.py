"""Greedy generation for every family, batched; the second half of ``encode`` / ``generate``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from model.data.schema import Row
from model.families.decoding import DecodingBatch, Prompt, check_context, continue_prompts
from model.families.interface import Network, Processor, Sample
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


def prompt_ids(processor: Processor, request: Request) -> list[int]:
    """Token ids of a request's prompt, an open assistant turn at its end.

    Raises:
        InputError: placeholders and features do not fit.
    """
    return processor.prompt(request.messages, request.features).input_ids


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
    context, lengths = check_context(network, prompts), [len(prompt.ids) for prompt in prompts]
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    limits = [min(limit, context - n) for limit, n in zip(limits, lengths, strict=True)]
    streams = [DecodeStream(skip_special_tokens=True) for _ in prompts]

    def greedy(logits_BV: Tensor, _active: list[int]) -> list[int]:
        return logits_BV.argmax(-1).tolist()

    def tell(index: int, token: int) -> bool | None:
        return on_token(index, token, streams[index].step(processor.tokenizer, token) or "")

    batch = DecodingBatch(network, processor.eos_token_id, prompts, rows)
    done = continue_prompts(batch, processor.eos_token_id, limits, greedy, tell if on_token else None)
    return [Completion(processor.decode(ids), ids, n, reason) for (ids, reason), n in zip(done, lengths, strict=True)]


def answer_rows(
    network: Network,
    processor: Processor,
    rows: Sequence[Row],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    progress: Callable[[str, int, int], None] | None = None,
    on_sample: Callable[[Sample], None] | None = None,
) -> list[str]:
    """Greedy answers to the questions of dataset rows (their last assistant turn is left out).

    ``on_sample`` is shown every row as it is asked, in order.

    Raises:
        InputError: names the row whose medium or messages cannot be used.
    """
    texts = []
    for start in range(0, len(rows), batch_size):
        asked = [processor.question(row) for row in rows[start : start + batch_size]]
        with torch.inference_mode():
            samples, visual = network.show(asked)
        for sample in samples if on_sample is not None else ():
            on_sample(sample)
        prompts = [Prompt(sample.input_ids, sample.positions) for sample in samples]
        texts += [c.text for c in decode(network, processor, prompts, visual, max_new_tokens)]
        if progress is not None:
            progress("answering", min(start + batch_size, len(rows)), len(rows))
    return texts
