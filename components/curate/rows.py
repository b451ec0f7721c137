"""What a joint operator sees of a dataset, and what it answers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from model.data.shards import Dataset

T = TypeVar("T")
BASE_FACTS = ("id", "task", "source", "license", "answers")
"""Columns that every joint operator may ask for beside the facts of the row functions before it."""


@dataclass(frozen=True)
class Verdicts:
    """Answer of a joint operator.

    Attributes:
        reasons: by place, why a row is rejected (without the category).
        copies: by place, how often a row is written, where that is not once; at least 1.
    """

    reasons: Mapping[int, str] = field(default_factory=dict)
    copies: Mapping[int, int] = field(default_factory=dict)


@dataclass
class Rows:
    """All rows of a dataset, without their media. A place is the number of a row in ``dataset.rows()``.

    Attributes:
        dataset: where the rows lie.
        reasons: by place, why a row was rejected; None for a sound row.
        load: reads a fact of every row from the state of the operators that ran (see ``fact``).
        evaluation: the evaluation sets that training may not give away; all of their rows are sound.
    """

    dataset: Dataset
    reasons: list[str | None]
    load: Callable[[str], list[Any]]
    evaluation: tuple["Rows", ...] = ()
    _loaded: dict[str, list[Any]] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.reasons)

    def fact(self, name: str) -> list[Any]:
        """One of ``BASE_FACTS``, or the newest fact of that name; null for rows that were rejected before it.

        Raises:
            KeyError: no operator so far has made it.
        """
        if name not in self._loaded:
            self._loaded[name] = self.load(name)
        return self._loaded[name]

    def forget(self) -> None:
        """Drop what was loaded: operators that ran since may have replaced it."""
        self._loaded.clear()

    def sound(self) -> list[int]:
        """Places of the rows that no operator has rejected, in order."""
        return [place for place, reason in enumerate(self.reasons) if reason is None]

    def images(self, places: Iterable[int], read: Callable[[bytes], T]) -> dict[int, list[T | None]]:
        """``read`` of the bytes of every image of the sound rows at ``places``; None for a video.

        Reads the dataset once and keeps nothing but what ``read`` gives: let it be small.
        """
        wanted = set(places)
        if not wanted:
            return {}
        return {
            place: [read(medium["bytes"] or b"") if medium["kind"] == "image" else None for medium in row["media"]]
            for place, row in enumerate(self.dataset.rows())
            if place in wanted
        }
