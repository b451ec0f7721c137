"""``curate``: rows that pass a recipe, split by stage; every other row is kept as a reject with its reason."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from components.context import StepContext, StepResult
from components.curate.config import CurateConfig
from components.curate.daft_runner import choose_runner
from components.curate.engine import Outcome, apply_recipe
from components.curate.integrity import FACTS
from components.curate.recipe import Decontaminate, Operator
from components.curate.rows import Rows
from model.data.errors import InputError
from model.data.schema import Reject, Row
from model.data.shards import open_dataset, write_dataset

STEP = "curate"
OUTPUTS = ("transcriptions", "questions")
_REPORT_EVERY = 256


def run(
    config: CurateConfig, *, corpus: Path, heldout: Path, transcriptions: Path, questions: Path, context: StepContext
) -> StepResult:
    """Decide about every row of ``corpus`` and write the good ones, in order, to one of two datasets.

    Args:
        corpus: dataset to curate.
        heldout: evaluation rows; where the recipe decontaminates, no row that gives one of them away remains.
        transcriptions, questions: outputs; rows of ``config.pretrain_tasks``, and all others.

    Raises:
        InputError: a dataset is missing or damaged, or a held-out row is not sound (it would be evaluated).
    """
    workers = choose_runner()
    rows_in = open_dataset(corpus, verify=True)
    sets = [heldout, *(path for section in config.recipe for path in _evaluation_sets(section))]
    evaluation = tuple(_evaluation_rows(path, config.recipe, workers, context) for path in dict.fromkeys(sets))
    state = context.state_dir / "rows"
    outcome = apply_recipe(
        rows_in, config.recipe, state, evaluation=evaluation, workers=workers, progress=context.progress
    )
    return _write(outcome, config, {"transcriptions": transcriptions, "questions": questions}, context)


def _evaluation_sets(section: Operator) -> tuple[Path, ...]:
    return section.evaluation_sets if isinstance(section, Decontaminate) else ()


def _evaluation_rows(path: Path, recipe: tuple[Operator, ...], workers: int, context: StepContext) -> Rows:
    """The facts about an evaluation set, all of whose rows must be sound.

    Raises:
        InputError: names the first row that is not.
    """
    dataset = open_dataset(path, verify=True)
    # Compared with no other set, decontaminate rejects nothing and only gathers its facts.
    chosen = [*recipe[:2], *(section for section in recipe if isinstance(section, Decontaminate))]
    state = context.state_dir / f"evaluation-{dataset.manifest['payload_sha256'][:16]}"
    rows = apply_recipe(dataset, chosen, state, workers=workers, progress=context.progress).rows
    for place, reason in enumerate(rows.reasons):
        if reason is not None:
            raise InputError(f"{path}: held-out row {rows.fact('id')[place]!r}: {reason}")
    return rows


def _write(outcome: Outcome, config: CurateConfig, directories: dict[str, Path], context: StepContext) -> StepResult:
    """Write both datasets with their rejects and the funnel of the whole step."""
    rows, pretrain = outcome.rows, set(config.pretrain_tasks)
    stage = [OUTPUTS[task not in pretrain] for task in rows.fact("task")]
    sound = rows.sound()
    written = Counter({name: 0 for name in OUTPUTS})
    for place in sound:
        written[stage[place]] += outcome.copies.get(place, 1)
    funnel = _funnel(outcome, config.recipe, written)
    assert len(rows) == sum(funnel["rejected"].values()) + len(sound)
    for name, directory in directories.items():
        mine = [output == name for output in stage]
        rejects = [
            Reject(id=row_id, step=STEP, reason=reason)
            for row_id, reason, chosen in zip(rows.fact("id"), rows.reasons, mine, strict=True)
            if chosen and reason is not None
        ]
        kept = _sound(outcome, mine, directory.name, context)
        write_dataset(directory, kept, shards=config.shards, rejects=rejects, extra_manifest={"funnel": funnel})
    numbers = {"rows_in": len(rows)} | dict(written)
    return StepResult(numbers=numbers | {f"rejected_{name}": count for name, count in funnel["rejected"].items()})


def _funnel(outcome: Outcome, recipe: tuple[Operator, ...], written: Counter[str]) -> dict[str, Any]:
    """Rows in and out in all, by category of the reasons, and operator by operator."""
    by_operator = Counter(number for number in outcome.rejected_by if number is not None)
    rejected: Counter[str] = Counter()
    operators, left = [], len(outcome.rows)
    for number, section in enumerate(recipe):
        rejected[section.category] += by_operator[number]
        out = left - by_operator[number]
        operators.append({"op": section.op, "rows_in": left, "rejected": by_operator[number], "rows_out": out})
        left = out
    return {
        "rows_in": len(outcome.rows),
        "rejected": dict(rejected),
        "copied": sum(times - 1 for times in outcome.copies.values()),
        "operators": operators,
        "rows_out": dict(written),
    }


def _sound(outcome: Outcome, mine: list[bool], name: str, context: StepContext) -> Iterator[Row]:
    """The chosen rows that are sound, as the operators left them, with the facts about their media filled in."""
    rows = outcome.rows
    facts = {name: rows.fact(name) for name in FACTS}
    for place, row in enumerate(rows.dataset.rows()):
        if place % _REPORT_EVERY == 0:
            context.progress(f"write {name}", place, len(rows))
        if not mine[place] or rows.reasons[place] is not None:
            continue
        for index, medium in enumerate(row["media"]):
            known = {fact: values[place][index] for fact, values in facts.items()}
            medium.update({fact: value for fact, value in known.items() if value is not None})
        for column, values in outcome.replaced.items():
            if place in values:
                row[column] = values[place]
        yield row
        yield from _copies(row, outcome.copies.get(place, 1))
    context.progress(f"write {name}", len(rows), len(rows))


def _copies(row: Row, times: int) -> Iterable[Row]:
    """The second and further copies of a row: ID~2, ID~3, ..."""
    return (row | {"id": f"{row['id']}~{copy}"} for copy in range(2, times + 1))
