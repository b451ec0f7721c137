"""Preference pairs: rows with a chosen and a rejected answer, to the packs of every optimiser step.

A pair is a tree of two branches (model/training/trees.py): image and question are computed once for both answers.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from model.data.errors import InputError
from model.data.schema import NOT_IN_ANSWERS, Row, reserved_word
from model.families.interface import Processor
from model.training.config import TrainingConfig
from model.training.reader import Reading, row_order
from model.training.trees import Tree, TreeBatch, tree_batch

T = TypeVar("T")
U = TypeVar("U")


class Reference(NamedTuple):
    """log pi_0(y | x) [P] of the chosen and of the rejected answers of P pairs, float32."""

    chosen: Tensor
    rejected: Tensor


# Row indices to what the reference network says of their answers.
LookUp = Callable[[Sequence[int]], Reference]


def answer_tokens(processor: Processor, text: str) -> list[int]:
    """Token ids of an answer and the end of its turn, as ``Processor.sample`` has them behind the question.

    Every family tokenises an answer with its end of turn apart from what stands around it.
    """
    end = processor.tokenizer.id_to_token(processor.eos_token_id)
    return processor.tokenizer.encode(text + end, add_special_tokens=False).ids


def check_pairs(rows: Sequence[Row]) -> None:
    """Look at the texts of all pairs, before anything is computed.

    Raises:
        InputError: no rows, or an answer of a row is missing, empty, the same as the other one, or holds a word of the
            chat template.
    """
    if not rows:
        raise InputError("the dataset has no rows to train on")
    for row in rows:
        chosen, rejected = row.get("chosen"), row.get("rejected")
        for name, answer in (("chosen", chosen), ("rejected", rejected)):
            if not isinstance(answer, str) or not answer.strip():
                raise InputError(f"row {row['id']}: {name} is {'missing' if answer is None else 'empty'}")
            if word := reserved_word(answer, NOT_IN_ANSWERS):
                raise InputError(f"row {row['id']}: {name} holds the reserved word {word}")
        if chosen == rejected:
            raise InputError(f"row {row['id']}: chosen and rejected are the same answer")


def pair_tree(processor: Processor, row: Row, max_tokens: int) -> Tree:
    """The question of a row with its media, and its chosen and rejected answers.

    Raises:
        InputError: a medium is broken, placeholders do not match, the answers have the same tokens, or question and
            longer answer are more than ``max_tokens``.
    """
    chosen, rejected = (answer_tokens(processor, row[name]) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise InputError(f"row {row['id']}: chosen and rejected are the same tokens")
    trunk = processor.question(row)
    tokens = len(trunk.input_ids) + max(len(chosen), len(rejected))
    if tokens > max_tokens:
        raise InputError(f"row {row['id']}: {tokens} tokens; training.max_tokens is {max_tokens}")
    return Tree(trunk, (chosen, rejected))


class PairReader:
    """Packs of ``micro_batch_size`` pairs, ``batch_size`` of them in an optimiser step, over all ranks.

    Args:
        rows: the dataset.
        processor: of the model's family.
        config: batch, order of rows, longest row.
        ranks, rank: this process takes every ``ranks``-th pair of a step, starting at ``rank``.
        blank: give a pack without media a blank visual item, so that all ranks run the same modules.
        look_up: what the reference network says of rows; None leaves it out of the batches.

    Raises:
        InputError: a pair cannot be used, the batch cannot be divided among the ranks, or pairs cannot be read as the
            configuration says.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        processor: Processor,
        config: TrainingConfig,
        *,
        ranks: int = 1,
        rank: int = 0,
        blank: bool = False,
        look_up: LookUp | None = None,
    ) -> None:
        check_pairs(rows)
        if config.batch_size % ranks:
            raise InputError(f"training.batch_size {config.batch_size} is not a multiple of {ranks} processes")
        self.rows, self.processor, self.config = rows, processor, config
        self.ranks, self.rank = ranks, rank
        self._at = row_order(rows, config)
        self._blank = processor.blank_media() if blank else None
        self._look_up = look_up

    @property
    def micro_pairs(self) -> int:
        """Most pairs of a pack."""
        return self.config.micro_batch_size or self.config.batch_size // self.ranks

    @property
    def micro_batches(self) -> int:
        """Micro-batches of this rank in every optimiser step."""
        return math.ceil(self.config.batch_size // self.ranks / self.micro_pairs)

    def resume(self, packer: dict[str, Any] | None) -> None:
        """Nothing to restore: the pairs of a step are a function of the seed and the step.

        Raises:
            InputError: the checkpoint is of packed rows.
        """
        if packer is not None:
            raise InputError("the checkpoint was written with another setting of training.packing")

    def read(self, first: int, last: int) -> Iterator[Reading]:
        """Steps ``first`` to ``last - 1``, in order, made one step ahead in a thread."""
        return one_ahead(self.reading, range(first, last))

    def reading(self, step: int) -> Reading:
        """The packs of one optimiser step."""
        size, micro = self.config.batch_size, self.micro_pairs
        share = [self._at(position) for position in range(step * size, (step + 1) * size)][self.rank :: self.ranks]
        parts = [share[start : start + micro] for start in range(0, len(share), micro)]
        return Reading(step, [self.batch(part, self._look_up) for part in parts], None)

    def batch(self, indices: Sequence[int], look_up: LookUp | None = None) -> TreeBatch:
        """One pack of the rows with these indices. Its weights add up to the number of pairs.

        ``given`` holds what ``look_up`` says of them, where there is one.
        """
        trees = [pair_tree(self.processor, self.rows[index], self.config.max_tokens) for index in indices]
        given = {} if look_up is None else look_up(indices)._asdict()
        return tree_batch(trees, [1.0, 0.0] * len(trees), given, self._blank)


def one_ahead(make: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """``make`` of every item, in order; the next one is made in a thread while the last one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        coming = None
        for item in items:
            ready, coming = coming, pool.submit(make, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()
