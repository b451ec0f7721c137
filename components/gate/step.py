"""Compare the challenger with the champion on the same rows, and say pass or fail."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from components.context import RegisteredModel, StepContext, StepResult
from components.gate.config import GateConfig
from components.predictions import PREDICTIONS, Origin, check_same_rows, origin_of, read_predictions
from components.scoring_table import by_family, score_row
from model.data.artifact import payload_sha256, write_atomic
from model.data.errors import InputError
from model.data.schema import Row
from model.data.shards import open_dataset
from scoring.intervals import Interval, bootstrap_difference

SCHEMA_VERSION = 1
VERDICT = "verdict.json"
CRITERION = "not_worse_than_champion"


@dataclass(frozen=True)
class Criterion:
    """One demand on the challenger.

    ``value`` is the mean over rows of (challenger - champion), ``low`` and ``high`` bound its 95 % interval, all None
    where there was nothing to compare with. It passes when ``low`` is above ``threshold``.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    threshold: float
    passed: bool
    reason: str


def run(
    config: GateConfig, *, model: Path, heldout: Path, evaluation: Path, verdict: Path, context: StepContext
) -> StepResult:
    """Judge a challenger.

    Args:
        config: the margin, and how to answer and resample.
        model: the challenger's directory.
        heldout: dataset directory.
        evaluation: what ``evaluate`` wrote for this model and these rows.
        verdict: output; gets ``verdict.json``.
        context: needs ``registry``.

    Raises:
        InputError: an input is missing or of another model or dataset, or the champion cannot be read.
    """
    if context.registry is None:
        raise ValueError("gate needs the model registry")
    challenger = read_predictions(evaluation)
    asked = challenger.origin
    if asked != origin_of(model, heldout, asked.max_new_tokens, asked.precision):
        raise InputError(f"{evaluation / PREDICTIONS}: these answers are of another model or another held-out dataset")
    champion = context.registry.by_alias(config.registered_model, "champion")
    families: dict[str, Interval] = {}
    if champion is None:
        criterion = Criterion(CRITERION, None, None, None, -config.margin, True, "there is no champion yet")
    elif champion.model_sha256 == asked.model_sha256:
        criterion = Criterion(CRITERION, 0.0, 0.0, 0.0, -config.margin, True, "the challenger is the champion")
    else:
        rows = list(open_dataset(heldout).rows())
        check_same_rows(challenger, rows, evaluation)
        theirs = champion_answers(config, champion, rows, asked, context)
        overall, families = compare(rows, challenger.answers, theirs, config)
        criterion = judge(overall, config.margin, champion)
    verdict.mkdir(parents=True, exist_ok=True)
    document = _document(criterion, families, asked, champion)
    write_atomic(verdict / VERDICT, json.dumps(document, indent=2, sort_keys=True).encode() + b"\n")
    return StepResult(numbers=_numbers(criterion), values={"passed": criterion.passed})


def compare(
    rows: Sequence[Row], ours: Sequence[str], theirs: Sequence[str], config: GateConfig
) -> tuple[Interval, dict[str, Interval]]:
    """Paired interval of the mean over rows of (ours - theirs): of all rows, and of each task family."""
    our_scores = [score_row(row, answer).value for row, answer in zip(rows, ours, strict=True)]
    their_scores = [score_row(row, answer).value for row, answer in zip(rows, theirs, strict=True)]

    def interval(indices: Sequence[int]) -> Interval:
        pairs = [our_scores[i] for i in indices], [their_scores[i] for i in indices]
        return bootstrap_difference(*pairs, resamples=config.bootstrap, seed=config.seed)

    return interval(range(len(rows))), {family: interval(indices) for family, indices in by_family(rows).items()}


def judge(difference: Interval, margin: float, champion: RegisteredModel) -> Criterion:
    """The criterion: the lower bound of the difference is above minus ``margin``."""
    passed = difference.low > -margin
    relation = "above" if passed else "not above"
    reason = (
        f"against version {champion.version}: the lower bound {difference.low:+.4f} of the difference "
        f"is {relation} {-margin:+.4f}"
    )
    return Criterion(CRITERION, difference.mean, difference.low, difference.high, -margin, passed, reason)


def champion_answers(
    config: GateConfig, champion: RegisteredModel, rows: Sequence[Row], asked: Origin, context: StepContext
) -> list[str]:
    """The champion's answers to ``rows``, generated as the challenger's were.

    Answers recorded at its own evaluation are used when they are of this model, these rows and these settings; else
    the champion answers now.

    Raises:
        InputError: the champion's directory is gone or was changed.
    """
    directory = local_path(champion.storage_uri)
    advice = f"choose another champion with `fovea rollback` or `fovea promote`, or restore {champion.storage_uri}"
    if not directory.is_dir():
        raise InputError(
            f"champion {champion.name} version {champion.version}: no such directory {directory}; {advice}"
        )
    wanted = Origin(champion.model_sha256, asked.heldout_sha256, asked.max_new_tokens, asked.precision)
    if (recorded := recorded_answers(champion, rows, wanted)) is not None:
        return recorded
    if payload_sha256(directory) != champion.model_sha256:
        raise InputError(f"champion {champion.name} version {champion.version}: {directory} was changed; {advice}")
    # Only here does the gate need torch.
    from components.answering import load_answerer

    answerer = load_answerer(
        directory,
        precision=asked.precision,
        threads=config.threads,
        batch_size=config.batch_size,
        max_new_tokens=asked.max_new_tokens,
        state_dir=context.state_dir / f"champion-{champion.model_sha256[:16]}",
        progress=context.progress,
    )
    return answerer.answer(rows, "champion answering")


def recorded_answers(champion: RegisteredModel, rows: Sequence[Row], wanted: Origin) -> list[str] | None:
    """The answers that the champion's tags point at, or None where they are missing or answer another question."""
    uri = champion.tags.get("predictions_uri")
    if uri is None or champion.tags.get("heldout_sha256") != wanted.heldout_sha256:
        return None
    path = local_path(uri)
    try:
        recorded = read_predictions(path.parent if path.name == PREDICTIONS else path)
    except InputError:
        return None
    same_rows = recorded.ids == [row["id"] for row in rows]
    return recorded.answers if recorded.origin == wanted and same_rows else None


def local_path(uri: str) -> Path:
    """The path of a ``file:`` URI or of a plain path.

    Raises:
        InputError: another kind of URI.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if parts.scheme:
        raise InputError(f"{uri}: not a directory on this machine")
    return Path(uri)


def _document(
    criterion: Criterion, families: dict[str, Interval], asked: Origin, champion: RegisteredModel | None
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "passed": criterion.passed,
        "criteria": [asdict(criterion)],
        "families": {
            family: {"value": interval.mean, "low": interval.low, "high": interval.high}
            for family, interval in families.items()
        },
        "heldout_sha256": asked.heldout_sha256,
        "challenger": {"model_sha256": asked.model_sha256},
        "champion": None if champion is None else {"version": champion.version, "model_sha256": champion.model_sha256},
    }


def _numbers(criterion: Criterion) -> dict[str, float]:
    numbers = {"passed": float(criterion.passed)}
    if criterion.value is not None and criterion.low is not None and criterion.high is not None:
        numbers |= {"difference": criterion.value, "difference_low": criterion.low, "difference_high": criterion.high}
    return numbers
