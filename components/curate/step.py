"""``curate``: rows that pass a recipe, split by stage; every other row is kept as a reject with its reason."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.context import StepContext, StepResult
from components.curate.config import CurateConfig
from components.curate.daft_runner import choose_runner
from components.curate.drift import Shape, drift, shape_of
from components.curate.engine import Outcome, apply_recipe
from components.curate.findings import findings
from components.curate.funnel import Examples, count_rows, has_statistics, packing_statistics
from components.curate.funnel_page import FUNNEL_FILE, render_funnel
from components.curate.integrity import FACTS
from components.curate.recipe import Decontaminate, Operator
from components.curate.rows import Rows
from model.data.artifact import write_atomic
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
    sets = dict.fromkeys([heldout, *(path for section in config.recipe for path in _evaluation_sets(section))])
    with findings(context) as state:
        evaluation = tuple(_evaluation_rows(path, config.recipe, state, workers, context) for path in sets)
        outcome = apply_recipe(
            rows_in,
            config.recipe,
            state / "rows",
            evaluation=evaluation,
            workers=workers,
            progress=context.progress,
        )
        return _write(outcome, config, {"transcriptions": transcriptions, "questions": questions}, context)


def _evaluation_sets(section: Operator) -> tuple[Path, ...]:
    return section.evaluation_sets if isinstance(section, Decontaminate) else ()


def _evaluation_rows(path: Path, recipe: tuple[Operator, ...], state: Path, workers: int, context: StepContext) -> Rows:
    """The facts about an evaluation set, all of whose rows must be sound.

    Raises:
        InputError: names the first row that is not.
    """
    dataset = open_dataset(path, verify=True)
    # Compared with no other set, decontaminate rejects nothing and only gathers its facts.
    chosen = [*recipe[:2], *(section for section in recipe if isinstance(section, Decontaminate))]
    rows = apply_recipe(dataset, chosen, state / "evaluation", workers=workers, progress=context.progress).rows
    for place, reason in enumerate(rows.reasons):
        if reason is not None:
            raise InputError(f"{path}: held-out row {rows.fact('id')[place]!r}: {reason}")
    return rows


def _write(outcome: Outcome, config: CurateConfig, directories: dict[str, Path], context: StepContext) -> StepResult:
    """Write both datasets with their rejects, and the funnel of the whole step."""
    rows, pretrain = outcome.rows, set(config.pretrain_tasks)
    stage = [OUTPUTS[task not in pretrain] for task in rows.fact("task")]
    sound = rows.sound()
    written = dict.fromkeys(OUTPUTS, 0)
    for place in sound:
        written[stage[place]] += outcome.copies.get(place, 1)
    funnel = count_rows(outcome, config.recipe, written)
    assert len(rows) == sum(funnel["rejected"].values()) + len(sound)
    examples = Examples.of(outcome)
    for name, directory in directories.items():
        mine = [output == name for output in stage]
        _write_output(outcome, config, name, directory, mine, funnel, examples, context)
    numbers = {"rows_in": len(rows)} | written
    return StepResult(numbers=numbers | {f"rejected_{name}": count for name, count in funnel["rejected"].items()})


def _write_output(
    outcome: Outcome,
    config: CurateConfig,
    name: str,
    directory: Path,
    mine: list[bool],
    funnel: dict[str, Any],
    examples: Examples,
    context: StepContext,
) -> None:
    """Write the rows that are ``mine`` with their rejects, and the page of their funnel."""
    rows = outcome.rows
    rejects = [
        Reject(id=row_id, step=STEP, reason=reason)
        for row_id, reason, chosen in zip(rows.fact("id"), rows.reasons, mine, strict=True)
        if chosen and reason is not None
    ]
    extra: dict[str, Any] = {"funnel": funnel}
    if has_statistics(config.recipe):
        extra["statistics"] = packing_statistics(outcome, mine)
    previous = getattr(config.previous, name)
    before = shape_of(open_dataset(previous)) if previous else None
    shape = Shape() if before else None

    def kept() -> Iterator[Row]:
        for row in _sound(outcome, mine, name, examples, context):
            if shape:
                shape.add(row)
            yield row
        if shape and before:
            extra["drift"] = drift(shape, before)

    write_dataset(directory, kept(), shards=config.shards, rejects=rejects, extra_manifest=extra)
    shown = examples.by_operator()
    page = render_funnel(name, config.recipe, funnel, shown, extra.get("statistics"), extra.get("drift"))
    write_atomic(directory / FUNNEL_FILE, page)


def _sound(outcome: Outcome, mine: list[bool], name: str, examples: Examples, context: StepContext) -> Iterator[Row]:
    """The chosen rows that are sound, as the operators left them, with the facts about their media filled in."""
    rows, wanted = outcome.rows, examples.wanted() if not examples.shown else set()
    facts = {fact: rows.fact(fact) for fact in FACTS}
    taken = set(rows.fact("id")) if outcome.copies else set()
    for place, row in enumerate(rows.dataset.rows()):
        if place % _REPORT_EVERY == 0:
            context.progress(f"write {name}", place, len(rows))
        for column, values in outcome.replaced.items():
            if place in values:
                row[column] = values[place]
        if place in wanted:
            examples.see(place, row, rows.reasons[place])
        if not mine[place] or rows.reasons[place] is not None:
            continue
        for index, medium in enumerate(row["media"]):
            known = {fact: values[place][index] for fact, values in facts.items()}
            medium.update({fact: value for fact, value in known.items() if value is not None})
        yield row
        yield from _copies(row, outcome.copies.get(place, 1), taken)
    context.progress(f"write {name}", len(rows), len(rows))


def _copies(row: Row, times: int, taken: set[str]) -> Iterator[Row]:
    """The second and further copies of a row, as ID~2, ID~3, ... where no row has that id."""
    free = (name for number in itertools.count(2) if (name := f"{row['id']}~{number}") not in taken)
    return (row | {"id": name} for name in itertools.islice(free, times - 1))
