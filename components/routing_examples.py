"""A few rows with the decision on every tile: kept with an evaluation, and read back as what a picture is drawn from.

Imports no torch: a report draws stored decisions.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.predictions import ROUTING
from components.scoring_table import by_family
from model.data.errors import InputError
from model.data.schema import Row
from model.flash.images import row_images
from model.flash.picture import SeenImage

if TYPE_CHECKING:
    from model.flash.network import FlashModel

MOST = 12
_DIGITS = 4


def routing_examples(
    network: "FlashModel", rows: Sequence[Row], routed: Sequence[tuple[int, int]], most: int = MOST
) -> list[dict[str, Any]]:
    """Every tile of a few rows of images, the families in turn; first those of which a part was compressed.

    Args:
        network: routes.
        rows: the held-out rows.
        routed: (compressed tiles, tiles) of each.
        most: examples.
    """
    from model.flash.encoding import look

    examples = []
    for index in _in_turn(rows, routed):
        if len(examples) == most:
            break
        if any(medium["kind"] != "image" for medium in rows[index]["media"]):
            continue
        shown = [
            {
                "grid": list(seen.grid),
                "compressed": [bool(flag) for flag in seen.compressed],
                "probabilities": [round(p, _DIGITS) for p in seen.probabilities],
            }
            for seen in look(network, row_images(rows[index]))
        ]
        examples.append({"id": rows[index]["id"], "rows_per_tile": network.rows_per_tile, "images": shown})
    return examples


def _in_turn(rows: Sequence[Row], routed: Sequence[tuple[int, int]]) -> Iterator[int]:
    """Indices of rows with tiles, one of each family after the other; mixed decisions first, then many tiles."""

    def rank(index: int) -> tuple[bool, int]:
        compressed, tiles = routed[index]
        return not 0 < compressed < tiles, -tiles

    families = [sorted((i for i in own if routed[i][1]), key=rank) for own in by_family(rows).values()]
    for place in range(max(map(len, families), default=0)):
        yield from (family[place] for family in families if place < len(family))


def read_examples(evaluation: Path, rows: Sequence[Row]) -> Iterator[tuple[int, list[SeenImage]]]:
    """Index of a row, and its images as the network saw them, of every example of an evaluation of ``rows``.

    An evaluation of a network that does not route has none.

    Raises:
        InputError: the file is of another kind or of other rows, or an image cannot be read.
    """
    path = evaluation / ROUTING
    if not path.is_file():
        return
    indices = {row["id"]: index for index, row in enumerate(rows)}
    try:
        examples = json.loads(path.read_bytes())["examples"]
        for example in examples:
            index, count = indices[example["id"]], int(example["rows_per_tile"])
            images = zip(row_images(rows[index]), example["images"], strict=True)
            yield (
                index,
                [
                    SeenImage(image, tuple(told["grid"]), told["compressed"], told["probabilities"], count)
                    for image, told in images
                ],
            )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the routing of these rows ({' '.join(str(error).split())[:200]})") from error
