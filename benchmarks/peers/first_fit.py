"""The packing of InternVL's public trainer, re-implemented from a description of its behaviour; not its code.

Described: ``internvl_chat_gpt_oss``, dataset_packed.py, with the published flags ``--num_images_expected 96
--max_packed_tokens 32768 --max_buffer_size 20 --strict_mode False --allow_overflow False``. Open packs stand in a list
with the most tiles first. A sample joins the first that has room for its tiles and tokens, or opens a pack of its own.
A pack leaves when its tokens are full, when its tiles are full, or, most tiles first, when more than
``max_buffer_size`` are open. Where packs have equally many tiles, the description leaves open which stands first; here
the one that waits longer does.
"""

from bisect import insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from model.families.interface import Size

MAX_BUFFER_SIZE = 20


@dataclass
class OpenPack:
    """A pack that still takes samples."""

    samples: list[int] = field(default_factory=list)
    tokens: int = 0
    units: int = 0


def first_fit(
    sizes: Iterable[Size],
    max_tokens: int,
    max_units: int,
    max_buffer_size: int = MAX_BUFFER_SIZE,
    open_packs: list[OpenPack] | None = None,
) -> Iterator[list[int]]:
    """Packs of a stream, as indices into it; packs that are still open when it ends are not given.

    Args:
        sizes: of every sample, none above a budget alone.
        max_tokens, max_units: budgets of a pack.
        max_buffer_size: packs that may be open at a time.
        open_packs: the list to keep the open packs in, most units first, for a caller who looks at it or continues
            with one.
    """
    packs: list[OpenPack] = [] if open_packs is None else open_packs  # most units first
    for index, size in enumerate(sizes):
        place = next((i for i, pack in enumerate(packs) if _fits(pack, size, max_tokens, max_units)), None)
        pack = OpenPack() if place is None else packs.pop(place)
        pack.samples.append(index)
        pack.tokens += size.tokens
        pack.units += size.units
        if pack.tokens == max_tokens:
            yield pack.samples
            continue
        insort(packs, pack, key=lambda other: -other.units)
        while packs and packs[0].units == max_units:
            yield packs.pop(0).samples
        while len(packs) > max_buffer_size:
            yield packs.pop(0).samples


def _fits(pack: OpenPack, size: Size, max_tokens: int, max_units: int) -> bool:
    return pack.tokens + size.tokens <= max_tokens and pack.units + size.units <= max_units
