"""What a step is given beside its paths and its configuration, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

# progress(label, done, total): cheap to call often; the runner decides what to show.
ProgressFunction = Callable[[str, int, int], None]


# metrics(record): one JSON-able record per optimiser step, with wall-clock values that belong in no payload.
MetricsFunction = Callable[[dict[str, Any]], None]


def no_progress(label: str, done: int, total: int) -> None:
    """Show nothing."""


def no_metrics(record: dict[str, Any]) -> None:
    """Keep nothing."""


@dataclass(frozen=True)
class RegisteredModel:
    """One version in the model registry.

    ``storage_uri`` is the published directory; ``model_sha256`` its payload hash.
    """

    name: str
    version: int
    storage_uri: str
    model_sha256: str
    aliases: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)


class Registry(Protocol):
    """The model registry as the steps see it (components/tracking.py implements it on MLflow)."""

    def names(self) -> list[str]:
        """Every registered model."""

    def by_alias(self, name: str, alias: str) -> RegisteredModel | None:
        """The version that holds ``alias``, or None."""

    def by_sha256(self, name: str, model_sha256: str) -> RegisteredModel | None:
        """The version registered for this payload, or None."""

    def register(self, name: str, storage_uri: str, model_sha256: str, tags: dict[str, str]) -> RegisteredModel:
        """Make a new version."""

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point ``alias`` at ``version``."""


@dataclass
class StepContext:
    """The surroundings of a running step.

    Every rank of a step runs the same ``run``. Rank 0 writes the outputs, and its result counts; the others write
    nothing and may return when they are no longer needed.

    Attributes:
        state_dir: survives a kill; the same step run again finds what it left here. The same one for all ranks.
        progress: progress reporter; does nothing on ranks above 0.
        registry: the model registry; None for steps that may not see it (all but gate, register, deploy).
        published: where each input lies for good, by name: its directory in the store, or else the input itself.
        metrics: keeps a record of an optimiser step (model/training/metrics.py) where ``fovea status`` finds it; does
            nothing on ranks above 0. Times differ from run to run, so they go here and never into ``StepResult``.
        cache_dir: shared by all runs of this step, whatever their settings and inputs; what lies there may vanish
            between runs, and no result may depend on it. None where there is none.
        rank: this process among those that run the step together, from 0.
        ranks: their number.
    """

    state_dir: Path
    progress: ProgressFunction = no_progress
    registry: Registry | None = None
    published: dict[str, Path] = field(default_factory=dict)
    metrics: MetricsFunction = no_metrics
    cache_dir: Path | None = None
    rank: int = 0
    ranks: int = 1


@dataclass
class FamilyScore:
    """Held-out score of one task family, with its 95 % bootstrap interval and its two baselines.

    ``constant`` is the score of the best constant answer, ``swapped`` the model's score with images swapped
    between rows (None where it was not measured), ``unparsed`` the number of answers that could not be parsed.
    """

    score: float
    low: float
    high: float
    n: int
    constant: float
    swapped: float | None = None
    unparsed: int = 0


@dataclass
class StepResult:
    """What a step reports: it is written to lineage.json and MLflow, never into the payload.

    Attributes:
        numbers: flat metrics (tokens, loss, rows, ...).
        history: one record per logged optimiser step, each with a ``step`` key.
        heldout: score per task family.
        values: small non-numeric outputs (the verdict's ``passed``, a registry version, ...).
    """

    numbers: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    heldout: dict[str, FamilyScore] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def read_result(record: dict[str, Any]) -> StepResult:
    """What a step reported, from its JSON."""
    heldout = {family: FamilyScore(**score) for family, score in record["heldout"].items()}
    return StepResult(record["numbers"], record["history"], heldout, record["values"])
