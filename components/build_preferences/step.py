"""``build_preferences``: sample answers to every query, judge them, and pair right with wrong ones."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from components.build_preferences.config import BuildPreferencesConfig
from components.build_preferences.engines import open_engine
from components.build_preferences.pairing import Pair, answer_pairs, dropout_pair, why_no_pairs
from components.build_preferences.queries import check_references, choose_queries
from components.build_preferences.sampling import Sampled, Sampler
from components.build_preferences.statistics import Statistics
from components.context import StepContext, StepResult
from components.rollouts import REPORT, QueryRollouts, write_rollouts
from model.data.artifact import write_atomic
from model.data.errors import InputError
from model.data.schema import Reject, Row
from model.data.shards import Dataset, open_dataset, write_dataset
from scoring.judge import Judges

STEP = "build_preferences"


def run(
    config: BuildPreferencesConfig, *, rows: Path, model: Path, pairs: Path, rollouts: Path, context: StepContext
) -> StepResult:
    """Make preference pairs from the answers of ``model`` to the questions of ``rows``.

    Args:
        config: sampling, limits and pairs.
        rows: dataset of questions.
        model: the model directory that answers, and that MPO will train.
        pairs: output; dataset with a row for every pair, and a reject for every row without one.
        rollouts: output; every query's answers with their scores, and ``report.html``.
        context: state directory (refused rows, chunks of finished queries) and progress.

    Raises:
        InputError: a row or the model cannot be used, or there is no pair at all.
    """
    dataset = open_dataset(rows)
    chosen = choose_queries(dataset, config)
    with closing(Judges()) as judges:
        refused = _refused(dataset, chosen, config, judges, context.state_dir / "refused.json")
        asked = chosen - refused.keys()
        with open_engine(config, model) as opened:
            sampler = Sampler(config, *opened, judges, context.state_dir / "answers")
            sampler.run(_rows(dataset, asked), len(asked), context.progress)
    return _write(config, dataset, chosen, refused, sampler, {"pairs": pairs, "rollouts": rollouts})


def _rows(dataset: Dataset, ids: set[str]) -> Iterator[Row]:
    return (row for row in dataset.rows() if row["id"] in ids)


def _refused(
    dataset: Dataset, chosen: set[str], config: BuildPreferencesConfig, judges: Judges, path: Path
) -> dict[str, str]:
    """Why rows are not asked, by id, as the first start of the step found it and ``path`` keeps it.

    A reference that takes its scorer about as long as it may is accepted at one start and refused at the next. Chunks
    of answers are numbered over the rows that are asked: these must be the same at every start.

    Raises:
        InputError: names a row that cannot be judged, or the file when it is damaged.
    """
    if not path.is_file():
        refused = check_references(_rows(dataset, chosen), config, judges)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(refused).encode())
        return refused
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); remove {path.parent} to start anew") from error


def pairs_of(sampled: Sampled, config: BuildPreferencesConfig) -> list[Pair]:
    """The pairs of one query."""
    if sampled.row["task"] in config.open_tasks:
        return dropout_pair(sampled.row["messages"][-1]["content"], sampled.answers)
    return answer_pairs(sampled.row["id"], sampled.answers, config)


def _write(
    config: BuildPreferencesConfig,
    dataset: Dataset,
    chosen: set[str],
    refused: dict[str, str],
    sampler: Sampler,
    outputs: dict[str, Path],
) -> StepResult:
    asked = chosen - refused.keys()
    beyond = len(dataset) - len(chosen)
    statistics = Statistics(config.rollouts, config.pairs_per_query, refused=len(refused), beyond=beyond)
    for sampled in sampler.read(_rows(dataset, asked)):
        statistics.add(sampled, pairs_of(sampled, config))
    if not statistics.pairs:
        raise InputError(f"{STEP}: no pair of a chosen and a rejected answer: {statistics.why_no_pairs()}")
    reasons: list[Reject] = []

    def pair_rows() -> Iterator[Row]:
        found = sampler.read(_rows(dataset, asked))
        for row in dataset.rows():
            reason = refused.get(row["id"])
            if row["id"] not in chosen:
                reason = f"not among the max_queries {config.max_queries} of its source"
            elif reason is None:
                sampled = next(found)
                made = pairs_of(sampled, config)
                for number, pair in enumerate(made):
                    yield row | {"id": f"{row['id']}/pair-{number}", "chosen": pair.chosen, "rejected": pair.rejected}
                reason = None if made else sampled.reason or why_no_pairs(sampled.answers)
            if reason is not None:
                reasons.append(Reject(id=row["id"], step=STEP, reason=reason))

    numbers = statistics.numbers()
    write_dataset(
        outputs["pairs"], pair_rows(), shards=config.shards, rejects=reasons, extra_manifest={"statistics": numbers}
    )
    queries = (
        QueryRollouts(sampled.row["id"], sampled.row["task"], tuple(sampled.answers))
        for sampled in sampler.read(_rows(dataset, asked))
        if sampled.reason is None
    )
    sampling = config.model_dump(mode="json", include={"rollouts", "temperature", "top_k", "top_p", "max_new_tokens"})
    write_rollouts(outputs["rollouts"], queries, {"sampling": sampling | {"seed": config.seed}, "statistics": numbers})
    write_atomic(outputs["rollouts"] / REPORT, statistics.page())
    return StepResult(numbers=numbers)
