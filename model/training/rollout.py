"""Rollouts: several sampled answers to each query, for preference data and online reinforcement learning.

One interface, ``RolloutEngine``; the engine here runs the network itself, that of ``vllm_rollout`` asks a server.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model.data.errors import InputError
from model.data.schema import Row, reserved_word
from model.families.decoding import DecodingBatch, Prompt, check_context, continue_prompts
from model.families.interface import Network, Processor, Sample
from model.training.attention import NAME as PACKED
from model.training.sampling import Sampling, answer_text, draw, sampleable_ids, uniforms
from model.training.stopping import give_up_if_requested


@dataclass(frozen=True)
class Query:
    """A row whose last message is to be answered anew; ``prefix`` begins the answer, which goes on from there."""

    row: Row
    prefix: str = ""


@dataclass(frozen=True)
class Response:
    """A sampled answer.

    Attributes:
        token_ids: the sampled tokens, without the query's prefix; the last one is the end of turn when the answer
            stopped by itself. Alone it makes an empty answer.
        log_probabilities: natural logarithm of the probability of each token under the model itself: softmax of its
            logits over the whole vocabulary at temperature 1, in float32, as ``token_log_probabilities`` gives it in
            training. It is not that of the distribution drawn from, which has temperature, top_k, top_p and no
            forbidden tokens.
        text: of the tokens.
        finish_reason: ``stop``, or ``length`` for an answer cut at the limit.
    """

    token_ids: list[int]
    log_probabilities: list[float]
    text: str
    finish_reason: str


class RolloutEngine(Protocol):
    """Samples answers.

    Randomness is a function of (seed, row id, prefix, number of the answer, position) alone, so neither batching nor
    the number of processes changes an answer. The exception is rounding: other shapes round logits differently, which
    changes a token where its random number falls within that of a border.
    """

    def sample(self, queries: Sequence[Query], count: int, sampling: Sampling, seed: int) -> list[list[Response]]:
        """``count`` answers to each query, in the order of the queries.

        Raises:
            InputError: names the row that cannot be used, or whose prompt exceeds the context.
            Interrupted: the process was asked to stop while it trains.
        """

    def refresh(self, network: Network) -> None:
        """Take the weights of ``network`` for what is sampled from now on."""


class NetworkSampler:
    """The engine that runs the network itself, of any family.

    The media of a query are encoded once and its prompt is prefilled once; the answers of a group share both.

    Args:
        network: may be one that trains: it is put into evaluation mode and padded attention, and back afterwards.
        processor: of the same family.
        max_tokens: bounds memory: positions in the cache, padding included, that are decoded together. A query whose
            group is larger has its answers decoded in parts; one answer is always decoded, however long it may be.
    """

    def __init__(self, network: Network, processor: Processor, max_tokens: int = 65_536) -> None:
        self.network, self.processor, self.max_tokens = network, processor, max_tokens
        ids = sampleable_ids(processor.tokenizer, processor.eos_token_id, network.config.text_config.vocab_size)
        self._allowed_A = torch.tensor(ids)

    def refresh(self, network: Network) -> None:
        """Take ``network`` from now on; the same one with new weights needs nothing."""
        self.network = network

    @torch.no_grad()
    def sample(self, queries: Sequence[Query], count: int, sampling: Sampling, seed: int) -> list[list[Response]]:
        """See ``RolloutEngine``."""
        groups: list[list[Response]] = []
        with generating(self.network):
            for batch in self._batches(queries, count, sampling):
                groups += self._sample_batch(*zip(*batch, strict=True), count, sampling, seed)
        return groups

    def _batches(
        self, queries: Iterable[Query], count: int, sampling: Sampling
    ) -> Iterator[list[tuple[Query, Sample]]]:
        """Queries with their samples, as many together as ``max_tokens`` allows."""
        batch: list[tuple[Query, Sample]] = []
        longest = 0
        for query in queries:
            sample = self._question(query)
            longest = max(longest, len(sample.input_ids))
            if batch and (len(batch) + 1) * count * (longest + sampling.max_new_tokens) > self.max_tokens:
                yield batch
                batch, longest = [], len(sample.input_ids)
            batch.append((query, sample))
        if batch:
            yield batch

    def _question(self, query: Query) -> Sample:
        """The prompt of a query: its question, and the beginning of the answer."""
        sample = self.processor.question(query.row)
        if query.prefix:
            ids = prefix_ids(self.processor, query)
            if sample.positions is not None:
                new = sample.positions.max() + 1 + np.arange(len(ids))
                sample.positions = np.concatenate([sample.positions, np.tile(new, (3, 1))], axis=1)
            sample.input_ids = [*sample.input_ids, *ids]
            sample.trained = [*sample.trained, *[False] * len(ids)]
        return sample

    def _sample_batch(
        self, queries: Sequence[Query], samples: Sequence[Sample], count: int, sampling: Sampling, seed: int
    ) -> list[list[Response]]:
        samples, rows = self.network.show(samples)
        prompts = [Prompt(sample.input_ids, sample.positions) for sample in samples]
        context = check_context(self.network, prompts, [f"row {query.row['id']}" for query in queries])
        prefilled = DecodingBatch(self.network, self.processor.eos_token_id, prompts, rows)
        together = self.max_tokens // (len(prompts) * (prefilled.width + sampling.max_new_tokens))
        groups: list[list[Response]] = [[] for _ in prompts]
        for first in range(0, count, max(1, together)):
            numbers = range(first, min(count, first + max(1, together)))
            wanted = [(index, number) for index in range(len(prompts)) for number in numbers]
            branches = prefilled.fork([index for index, _ in wanted])
            limits = [min(sampling.max_new_tokens, context - len(prompts[index].ids)) for index, _ in wanted]
            random = [uniforms(seed, queries[i].row["id"], queries[i].prefix, number) for i, number in wanted]
            names = [f"row {queries[index].row['id']}" for index, _ in wanted]
            responses = self._decode(branches, limits, random, sampling, names)
            for (index, _), response in zip(wanted, responses, strict=True):
                groups[index].append(response)
        return groups

    def _decode(
        self,
        batch: DecodingBatch,
        limits: Sequence[int],
        random: Sequence[Iterator[float]],
        sampling: Sampling,
        names: Sequence[str],
    ) -> list[Response]:
        allowed_A = self._allowed_A.to(self.network.device)
        log_probabilities: list[list[float]] = [[] for _ in limits]

        def choose(logits_BV: Tensor, active: list[int]) -> list[int]:
            give_up_if_requested()
            logits_BV = logits_BV.float()
            total_B = logits_BV.logsumexp(1)
            if not bool((finite_B := total_B.isfinite()).all()):
                raise InputError(
                    f"{names[active[int(finite_B.int().argmin())]]}: the model gives no finite probabilities"
                )
            ids_B = draw(logits_BV, allowed_A, [next(random[index]) for index in active], sampling)
            chosen_B = logits_BV.gather(1, ids_B[:, None])[:, 0] - total_B
            for index, value in zip(active, chosen_B.tolist(), strict=True):
                log_probabilities[index].append(value)
            return ids_B.tolist()

        end = self.processor.eos_token_id
        done = continue_prompts(batch, end, limits, choose)
        tokenizer = self.processor.tokenizer
        return [
            Response([*ids, end] if reason == "stop" else ids, values, answer_text(tokenizer, ids, end), reason)
            for (ids, reason), values in zip(done, log_probabilities, strict=True)
        ]


def prefix_ids(processor: Processor, query: Query) -> list[int]:
    """Token ids of the beginning of a query's answer.

    Raises:
        InputError: it holds a word that the tokenizer would read as a control token.
    """
    if found := reserved_word(query.prefix):
        raise InputError(f"row {query.row['id']}: the beginning of an answer holds the reserved word {found}")
    return processor.tokenizer.encode(query.prefix, add_special_tokens=False).ids


@contextmanager
def generating(network: Network) -> Iterator[None]:
    """Evaluation mode, and attention that takes a cache and padding where training has packs; then as before."""
    from transformers import PreTrainedModel

    models = [m for m in network.modules() if isinstance(m, PreTrainedModel)]
    packed = [m for m in models if m.config._attn_implementation == PACKED]
    training = [m for m in network.modules() if m.training]
    network.eval()
    for module in packed:
        module.set_attn_implementation("sdpa" if module._supports_sdpa else "eager")
    try:
        yield
    finally:
        for module in packed:
            module.set_attn_implementation(PACKED)
        for module in training:
            module.training = True
