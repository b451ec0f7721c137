"""Answers that share a prompt, laid out so that the prompt and its media are computed once.

Preference pairs and groups of rollouts are several answers to one question. A tree is the question (its trunk) and the
answers (its branches). In a pack of trees every trunk stands once, followed by its branches; a branch attends to its
trunk and to itself, and its positions go on from the trunk's. So the states of a branch are those of trunk and branch
alone, and the vision half and the prompt cost as much for sixteen answers as for one.

Shape suffixes: T tokens of the pack, S branches, M answer tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from model.families.interface import Inputs, Sample
from model.training.batches import Batch, Media


@dataclass(frozen=True)
class Tree:
    """A question with its media (an open assistant turn at its end) and the token ids of its answers, the end of turn
    included where they have one. An answer may be empty."""

    trunk: Sample
    branches: Sequence[Sequence[int]]


@dataclass
class TreeBatch(Batch):
    """A pack of trees. ``targets`` [M] are the tokens of all branches, one after the other, and the states that the
    network gives are those before each of them; ``weights`` [S] are of the branches.

    Attributes:
        lengths: tokens of each branch; their sum is M.
        given: whatever else the loss needs of branches or tokens.
    """

    lengths: list[int] = field(default_factory=list)
    given: dict[str, Tensor] = field(default_factory=dict)


def tree_batch(
    trees: Sequence[Tree], weights: Sequence[float], given: Mapping[str, Tensor], blank: Media | None = None
) -> TreeBatch:
    """Lay trees end to end.

    Args:
        trees: at least one, of at least one branch each.
        weights: of every branch in order; their sum over the optimiser step is the loss's denominator.
        given: as in ``TreeBatch``.
        blank: a visual item to add when the trunks have none.

    Raises:
        ValueError: there are not as many weights as branches.
    """
    laid = [_lay(tree) for tree in trees]
    lengths = [len(branch) for tree in trees for branch in tree.branches]
    if len(weights) != len(lengths):
        raise ValueError(f"{len(weights)} weights for {len(lengths)} branches")
    starts = np.cumsum([0, *(len(one.ids) for one in laid)])
    queries = [length for one in laid for length in one.queries]
    keys = [start + indices for start, one in zip(starts[:-1], laid, strict=True) for indices in one.keys]
    keep = np.concatenate([start + one.keep for start, one in zip(starts[:-1], laid, strict=True)])
    seen = [tree.trunk.media for tree in trees if tree.trunk.units]
    add_blank = blank is not None and not seen
    items = [blank] if add_blank else seen
    media = (
        {name: torch.from_numpy(np.concatenate([item[name] for item in items])) for name in items[0]} if items else {}
    )
    positions = torch.from_numpy(np.concatenate([one.positions for one in laid], axis=-1))
    inputs = Inputs(
        ids=torch.from_numpy(np.concatenate([one.ids for one in laid]))[None],
        mask=None,
        positions=positions[None] if positions.ndim == 1 else positions[:, None],
        cu_seqlens=_borders(queries),
        media=media,
        blank=add_blank,
        keep=torch.from_numpy(keep),
        keys=torch.from_numpy(np.concatenate(keys)),
        key_cu_seqlens=_borders([len(indices) for indices in keys]),
    )
    return TreeBatch(
        inputs,
        torch.tensor([token for tree in trees for branch in tree.branches for token in branch], dtype=torch.long),
        torch.tensor(weights, dtype=torch.float32),
        [tree.trunk.row_id for tree in trees],
        tokens=int(starts[-1]),
        units=sum(tree.trunk.units for tree in trees),
        lengths=lengths,
        given=dict(given),
    )


@dataclass(frozen=True)
class _Laid:
    """One tree on its own: token ids [T], positions [T] or [3, T]; for each segment its number of queries and the
    indices of its keys; the index before every answer token [M]."""

    ids: np.ndarray
    positions: np.ndarray
    queries: list[int]
    keys: list[np.ndarray]
    keep: np.ndarray


def _lay(tree: Tree) -> _Laid:
    """The trunk and the first branch are one segment, every other branch is one of its own.

    A branch's last token is never fed: nothing follows it.
    """
    trunk = np.arange(len(tree.trunk.input_ids))
    after = _next_position(tree.trunk)
    ids, queries, keys, keep = [np.array(tree.trunk.input_ids)], [], [], []
    places = [trunk if tree.trunk.positions is None else tree.trunk.positions]
    start = len(trunk)
    for number, branch in enumerate(tree.branches):
        fed = max(0, len(branch) - 1)
        own = np.arange(start, start + fed)
        ids.append(np.array(branch[:fed], dtype=np.int64))
        places.append(np.broadcast_to(after + np.arange(fed), (*places[0].shape[:-1], fed)))
        queries.append(fed + (len(trunk) if number == 0 else 0))
        keys.append(np.concatenate([trunk, own]))
        # The first token of every branch is predicted where the trunk ends.
        keep.append(np.concatenate([trunk[-1:], own]) if branch else own)
        start += fed
    return _Laid(np.concatenate(ids), np.concatenate(places, axis=-1), queries, keys, np.concatenate(keep))


def _next_position(trunk: Sample) -> int:
    """The position of the first token of an answer: after the largest one of the prompt, on every axis."""
    return len(trunk.input_ids) if trunk.positions is None else int(trunk.positions.max()) + 1


def _borders(lengths: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32))
