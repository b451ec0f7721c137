"""Prompts going on token by token, together: one key-value cache, padding on the left. Greedy generation and sampling
differ in how they choose a token.

Shape suffixes: B sequences, T tokens, D hidden, V vocabulary.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from model.data.errors import InputError
from model.families.interface import Network

# choose(logits [B, V], sequence numbers of the B rows) -> their next token ids.
ChooseFunction = Callable[[Tensor, list[int]], list[int]]
# on_token(sequence number, token id) -> False cancels that sequence.
TokenTaken = Callable[[int, int], bool | None]


class Prompt(NamedTuple):
    """Token ids [T], and positions [3, T] for the M-RoPE families; None counts 0, 1, 2, ..."""

    ids: Sequence[int]
    positions: np.ndarray | None

    @property
    def delta(self) -> int:
        """How far the position of a generated token is from its index: the one after a prompt's largest position is
        next, which a video that lasts longer than it is wide takes beyond the number of tokens, and an image behind."""
        return 0 if self.positions is None else int(self.positions.max()) + 1 - len(self.ids)


class Continuation(NamedTuple):
    """Tokens that followed a prompt, the end of turn left out; ``finish_reason`` is stop, length or cancelled."""

    token_ids: list[int]
    finish_reason: str


class DecodingBatch:
    """Prompts being decoded together: padded on the left, with one key-value cache.

    Args:
        network: of any family.
        pad_id: a token id for the padding, which nothing sees.
        prompts: at least one.
        rows: the visual rows of all prompts in order; None of none.
    """

    def __init__(self, network: Network, pad_id: int, prompts: Sequence[Prompt], rows: Tensor | None) -> None:
        self.network = network
        width, device = max(len(prompt.ids) for prompt in prompts), network.device
        ids = torch.full((len(prompts), width), pad_id, device=device)
        self.mask_BT = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt.ids) :] = torch.tensor(prompt.ids, device=device)
            self.mask_BT[i, width - len(prompt.ids) :] = 1
        self.cache = DynamicCache(config=network.config.text_config)
        self.delta_B = torch.tensor([prompt.delta for prompt in prompts], device=device)
        given = network.language_inputs(ids, None if rows is None else rows.to(device))
        self.states_BD = self._step(given, self._prompt_positions(prompts, width))

    def _prompt_positions(self, prompts: Sequence[Prompt], width: int) -> Tensor:
        """[B, T], or [3, B, T] for the M-RoPE families."""
        if prompts[0].positions is None:
            return (self.mask_BT.cumsum(1) - 1).clamp(min=0)
        positions = np.zeros((3, len(prompts), width), np.int64)
        for i, prompt in enumerate(prompts):
            positions[:, i, width - len(prompt.ids) :] = prompt.positions
        return torch.from_numpy(positions).to(self.mask_BT.device)

    def _step(self, given: dict[str, object], positions: Tensor) -> Tensor:
        return self.network.language_model.base_model(
            **given,
            attention_mask=self.mask_BT,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]

    @property
    def width(self) -> int:
        """Positions that the cache holds of every sequence, padding included."""
        return self.mask_BT.shape[1]

    def logits(self) -> Tensor:
        """Of the next token [B, V]."""
        return self.network.head(self.states_BD)

    def advance(self, ids_B: Sequence[int]) -> None:
        """Feed the chosen tokens."""
        # Generated text has one position on every axis: transformers lays [B, 1] over all three.
        positions = (self.mask_BT.sum(1) + self.delta_B)[:, None]
        self.mask_BT = torch.cat([self.mask_BT, torch.ones_like(self.mask_BT[:, :1])], dim=1)
        ids = torch.tensor(ids_B, device=self.mask_BT.device)
        embeds = self.network.language_model.get_input_embeddings()(ids[:, None])
        self.states_BD = self._step({"inputs_embeds": embeds}, positions)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        index = torch.tensor(rows, device=self.mask_BT.device)
        self.mask_BT, self.states_BD, self.delta_B = self.mask_BT[index], self.states_BD[index], self.delta_B[index]
        self.cache.batch_select_indices(index)

    def fork(self, rows: Sequence[int]) -> "DecodingBatch":
        """A batch of its own that goes on from these rows, each as often as it is named; this one stays as it is."""
        other = copy(self)
        other.cache = copy(self.cache)
        # A layer replaces its tensors and never writes into them, so the copies leave the originals alone.
        other.cache.layers = [copy(layer) for layer in self.cache.layers]
        other.keep(rows)
        return other


def check_context(network: Network, prompts: Sequence[Prompt], names: Sequence[str] | None = None) -> int:
    """The model's context in tokens; every prompt leaves room for an answer of one token at least.

    Args:
        network: of any family.
        prompts: to be checked.
        names: how messages begin, by prompt.

    Raises:
        InputError: a prompt exceeds the context.
    """
    context = network.config.text_config.max_position_embeddings
    for number, prompt in enumerate(prompts):
        if len(prompt.ids) >= context:
            name = f"{names[number]}: " if names else ""
            raise InputError(f"{name}prompt has {len(prompt.ids)} tokens; the model's context is {context}")
    return context


def continue_prompts(
    batch: DecodingBatch,
    end_of_turn: int,
    limits: Sequence[int],
    choose: ChooseFunction,
    on_token: TokenTaken | None = None,
) -> list[Continuation]:
    """Choose tokens until every sequence has ended; one that ends leaves the batch, and the others go on.

    Args:
        batch: prefilled; used up.
        end_of_turn: the token that ends an answer.
        limits: most tokens of each sequence, 1 at least.
        choose: gives the next tokens of the rows that go on.
        on_token: told of every token but the end of turn.
    """
    answers: list[list[int]] = [[] for _ in limits]
    reasons = ["length"] * len(limits)
    active = list(range(len(limits)))
    while active:
        tokens, staying = choose(batch.logits(), active), []
        for row, token in enumerate(tokens):
            index = active[row]
            if token == end_of_turn:
                reasons[index] = "stop"
                continue
            answers[index].append(token)
            if on_token is not None and on_token(index, token) is False:
                reasons[index] = "cancelled"
                continue
            if len(answers[index]) < limits[index]:
                staying.append(row)
        if not staying:
            break
        if len(staying) < len(active):
            batch.keep(staying)
            active = [active[row] for row in staying]
        batch.advance([tokens[row] for row in staying])
    return [Continuation(*parts) for parts in zip(answers, reasons, strict=True)]
