"""Drawing tokens: which may be drawn, from which distribution, and with which random numbers.

Shape suffixes: B sequences, V vocabulary, A ids that may be sampled.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from model.data.schema import NOT_IN_ANSWERS

_CONTROL = re.compile(r"<\|.*\|>")
_GROUNDING = {
    *(tag for name in ("ref", "box", "quad") for tag in (f"<{name}>", f"</{name}>")),
    *(f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad") for end in ("start", "end")),
}
"""Special tokens that are text of an answer: what it names and where that is, as InternVL and the Qwen-VLs write it."""
_RESOLUTION = float(2**44)
"""Weight of the likeliest token where probabilities are summed as integers: 2**18 tokens that are all as likely add up
to 2**62, and 64 bits hold that."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. The defaults are those of online RL (InternVL3.5, section 2.7 of the released scripts).

    Attributes:
        temperature: divides the logits; towards 0 the likeliest token is always drawn.
        top_p: the smallest set of likeliest tokens that has this probability; 1 for all.
        top_k: this many likeliest tokens; 0 for all. Tokens as likely as the last of them are not told apart.
        max_new_tokens: longest answer, its end of turn included.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and 0 < self.top_p <= 1 and self.top_k >= 0 and self.max_new_tokens >= 1):
            raise ValueError(f"temperature > 0, 0 < top_p <= 1, top_k >= 0 and max_new_tokens >= 1: not so in {self}")


def uniforms(seed: int, row_id: str, prefix: str, number: int) -> Iterator[float]:
    """The random numbers of one answer, in [0, 1): the n-th depends on the arguments and n alone.

    Philox, a counter-based generator, under a key of its own for every answer.
    """
    digest = sha256(json.dumps([seed, row_id, prefix, number]).encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    while True:
        yield generator.random()


def sampleable_ids(tokenizer: Tokenizer, end_of_turn: int, vocabulary: int) -> list[int]:
    """Ids that may be sampled, ascending: text, tags around names and boxes, and the end of turn.

    Left out are other special tokens, the words that chat templates write around turns and images, everything else
    written ``<|...|>``, and rows of the head that stand for no token (vocabularies are padded to a round number). What
    remains includes ``<think>`` and ``</think>``.

    Args:
        tokenizer: of the model.
        end_of_turn: a special token that may be sampled.
        vocabulary: rows of the head.
    """
    added = tokenizer.get_added_tokens_decoder()
    known = {
        index
        for token, index in tokenizer.get_vocab(with_added_tokens=True).items()
        if token in _GROUNDING
        or (
            token not in NOT_IN_ANSWERS
            and not _CONTROL.fullmatch(token)
            and not (index in added and added[index].special)
        )
    }
    return sorted(index for index in known | {end_of_turn} if index < vocabulary)


def answer_text(tokenizer: Tokenizer, token_ids: Sequence[int], end_of_turn: int) -> str:
    """Text of sampled ids, with the tags around names and boxes, which a tokenizer leaves out with all that is special.

    Args:
        tokenizer: of the model.
        token_ids: of ``sampleable_ids``.
        end_of_turn: no part of the text.
    """
    return tokenizer.decode([index for index in token_ids if index != end_of_turn], skip_special_tokens=False)


def draw(logits_BV: Tensor, allowed_A: Tensor, uniforms_B: Sequence[float], sampling: Sampling) -> Tensor:
    """One token for each sequence, by the inverse of its distribution function over the ids in ascending order.

    Probabilities are summed as integers, so that the result is the same in whatever order a device adds.

    Args:
        logits_BV: of the next token.
        allowed_A: the ids that may be drawn, ascending; the others do not take part.
        uniforms_B: one random number in [0, 1) each.
        sampling: temperature, top_k and top_p, applied in this order.

    Returns:
        [B] token ids.
    """
    logits_BA = logits_BV.index_select(1, allowed_A).float()
    logits_BA = (logits_BA - logits_BA.amax(1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < logits_BA.shape[1]:
        least = logits_BA.topk(sampling.top_k).values[:, -1:]
        logits_BA = logits_BA.masked_fill(logits_BA < least, -torch.inf)
    if sampling.top_p < 1:
        logits_BA = logits_BA.masked_fill(~_nucleus(logits_BA, sampling.top_p), -torch.inf)
    # The likeliest token has logit 0, so it weighs the whole resolution.
    cumulated_BA = (logits_BA.double().exp() * _RESOLUTION).long().cumsum(1)
    total_B = cumulated_BA[:, -1:]
    uniforms = torch.tensor(uniforms_B, dtype=torch.float64, device=logits_BA.device)[:, None]
    target_B = torch.minimum((uniforms * total_B.double()).long(), total_B - 1)
    return allowed_A[torch.searchsorted(cumulated_BA, target_B, right=True)[:, 0]]


def _nucleus(logits_BA: Tensor, top_p: float) -> Tensor:
    """Which tokens belong to the smallest set of likeliest ones with a probability of ``top_p``; ties belong too."""
    probabilities_BA = logits_BA.softmax(1)
    ordered = probabilities_BA.sort(1, descending=True).values
    weights = (ordered.double() * _RESOLUTION).long()
    before = weights.cumsum(1) - weights
    inside = (before < top_p * _RESOLUTION).sum(1, keepdim=True)
    return probabilities_BA >= ordered.gather(1, inside - 1)
