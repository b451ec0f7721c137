"""Which rows go together into a pack. Imports no torch.

A pack has two budgets, tokens and visual units. First-fit (what InternVL's trainer does) puts each row where it happens
to fit and leaves some 6 % of the tokens empty. Here every pack is the solution of a small subset-sum problem over the
rows that wait: the oldest, and those others whose tokens fill the rest best. Which rows those are is a pure function of
the stream, so the whole state is the positions that wait.
"""

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

from model.data.errors import InputError
from model.families.interface import Size
from model.training.config import PackingConfig

_UNREACHABLE = np.int32(2**30)


class PackerState(TypedDict):
    """What a checkpoint keeps: positions of the stream, never a sample."""

    drawn: int
    """Positions drawn so far; the next one to draw."""
    waiting: list[list[int]]
    """Position, tokens and units of the drawn rows that are in no pack yet, oldest first: measuring them again would be
    most of the time that a resumed run needs to begin."""


class Packer:
    """Packs of an endless stream of rows, under a budget of tokens and one of visual units.

    Before every pack the window is filled up to ``lookahead`` waiting rows. The pack takes the oldest of them and the
    best of the others. Hence, with L = ``lookahead``:

    - every pack takes the oldest, so a row is in one of the L packs that follow its entry into the window;
    - the row at position n enters once no more than L - 1 of the n rows before it wait, so it is never packed before
      n - L + 1 other rows are.

    Both hold for any sizes. Every position is packed exactly once.

    Args:
        config: the two budgets and the size of the window.
        sizes: size of the row with an index; called once for every position drawn.
        order: row index at a position of the stream (0, 1, 2, ...); called where ``sizes`` is.
        name: how a message calls the row with an index.
    """

    def __init__(
        self,
        config: PackingConfig,
        sizes: Callable[[int], Size],
        order: Callable[[int], int],
        name: Callable[[int], str] = "row {}".format,
    ) -> None:
        self.config = config
        self._sizes, self._order, self._name = sizes, order, name
        self._drawn = 0
        self._waiting: dict[int, tuple[int, Size]] = {}  # row index and size, in the order of the stream

    def next(self) -> list[int]:
        """Row indices of the next pack, in the order of the stream.

        Raises:
            InputError: a row exceeds a budget alone.
        """
        while len(self._waiting) < self.config.lookahead:
            self._waiting[self._drawn] = self._measure(self._drawn)
            self._drawn += 1
        positions = list(self._waiting)
        oldest, *others = [size for _, size in self._waiting.values()]
        chosen = best_subset(others, self.config.max_tokens - oldest.tokens, self.config.max_units - oldest.units)
        return [self._waiting.pop(positions[i])[0] for i in (0, *(1 + k for k in chosen))]

    def state(self) -> PackerState:
        """What ``load`` needs to continue with the same packs; fit for JSON."""
        waiting = [[position, *size] for position, (_, size) in self._waiting.items()]
        return {"drawn": self._drawn, "waiting": waiting}

    def load(self, state: PackerState) -> None:
        """Continue where ``state`` was taken; the stream must be the same.

        Raises:
            InputError: a waiting row exceeds a budget alone, because the budgets were lowered.
        """
        waiting = {position: self._fitting(self._order(position), Size(*size)) for position, *size in state["waiting"]}
        self._drawn, self._waiting = state["drawn"], waiting

    def _measure(self, position: int) -> tuple[int, Size]:
        row = self._order(position)
        return self._fitting(row, self._sizes(row))

    def _fitting(self, row: int, size: Size) -> tuple[int, Size]:
        for taken, what in ((size.tokens, "tokens"), (size.units, "units")):
            budget = getattr(self.config, f"max_{what}")
            if taken > budget:
                raise InputError(f"{self._name(row)}: {taken} {what}; training.packing.max_{what} is {budget}")
        return row, size


def best_subset(sizes: Sequence[Size], tokens: int, units: int) -> list[int]:
    """The subset with the most tokens that keeps both budgets; exact.

    Dynamic programming over the number of tokens: least[t] is the fewest units of any subset of the first k sizes with
    exactly t tokens, and so t can be had if and only if least[t] <= units. Stops at the first k that fills the tokens
    to the last, which favours the front of ``sizes``. O(len(sizes) * tokens) additions in numpy: a pack of 32,768
    tokens takes 1 to 2 ms where some 25 sizes do, and 5 ms where all of 256 are tried.

    Args:
        sizes: the candidates.
        tokens, units: the budgets.

    Returns:
        Indices into ``sizes``, ascending. Empty when nothing fits.
    """
    least = np.full(tokens + 1, _UNREACHABLE, np.int32)
    least[0] = 0
    reach = 0  # no subset so far has more tokens
    taken: list[np.ndarray] = []  # [k] packed bits: whether the best subset for this number of tokens takes size k
    for size in sizes:
        if size.tokens > tokens or size.units > units:
            taken.append(np.empty(0, np.uint8))
            continue
        reach = min(tokens, reach + size.tokens)
        with_it = least[: reach - size.tokens + 1] + np.int32(size.units)
        without = least[size.tokens : reach + 1]
        better = (with_it < without) & (with_it <= units)
        np.copyto(without, with_it, where=better)
        taken.append(np.packbits(better, bitorder="little"))
        if least[tokens] <= units:
            break
    total = int(np.flatnonzero(least < _UNREACHABLE)[-1])
    chosen = []
    for k in reversed(range(len(taken))):
        bit = total - sizes[k].tokens
        if 0 <= bit < 8 * len(taken[k]) and taken[k][bit >> 3] >> (bit & 7) & 1:
            chosen.append(k)
            total = bit
    return chosen[::-1]
