"""Work on many positions, a chunk at a time, computed again in the backward pass.

The logits of a batch are its largest tensor; whatever is made of them exists for ``chunk`` positions at a time.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def by_chunks(piece: Callable[..., T], tensors: Sequence[Tensor], chunk: int, calls: int | None = None) -> list[T]:
    """``piece`` of even pieces of ``tensors``, in order; a single piece is kept for the backward pass.

    Args:
        piece: takes a piece of each tensor. What it returns last is not computed again where nothing needs it.
        tensors: alike in their first axis, the M positions; M may be 0, then ``piece`` sees no position.
        chunk: most positions of a piece.
        calls: how often ``piece`` is called; as often as M needs when None. Ranks that divide the weights of a head
            gather them together in every call, and wait for each other for ever if one calls more often than another.
            There it has to come from what all ranks share, never from M: pieces without a position fill up the calls.

    Raises:
        ValueError: ``calls`` pieces of ``chunk`` positions do not hold M.
    """
    positions = len(tensors[0])
    needed = max(1, -(-positions // chunk))
    calls = needed if calls is None else calls
    if calls < needed:
        raise ValueError(f"{calls} chunks of {chunk} do not hold {positions} positions")
    if calls == 1:
        # One piece is all there is: computing it again would save nothing.
        return [piece(*tensors)]
    pieces = zip(*(tensor.tensor_split(calls) for tensor in tensors), strict=True)
    return [checkpoint(piece, *given, use_reentrant=False) for given in pieces]
