"""The engine of curation: runs a recipe over a dataset shard by shard, keeps what it found, and continues after a kill.

Row functions between two joint ones run as one Daft query per row group; the findings of each operator are kept apart
(``ledger.py``), under a key that chains the sections and the code of all operators so far. So a killed run continues,
and a changed operator re-runs with those after it. Shards depend on the input alone, a query sees one row group, and
findings are put in the order of the rows: runner and number of workers change the time and nothing else.
"""

import functools
import hashlib
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import daft
import pyarrow as pa
import pyarrow.compute as pc
from daft import DataType, Expression, col, lit

from components.code_version import code_version
from components.context import ProgressFunction, no_progress
from components.curate.dispatch import implementation
from components.curate.findings import mark_used
from components.curate.ledger import Ledger, partition
from components.curate.recipe import Operator
from components.curate.rows import BASE_FACTS, Rows, Verdicts
from model.data.artifact import file_sha256, payload_sha256
from model.data.schema import ROW_SCHEMA
from model.data.shards import Dataset

_REPOSITORY = Path(__file__).resolve().parents[2]
_ROW = "_row"


@dataclass(frozen=True)
class Stage:
    """One function of one operator of the recipe: its row function or its joint function."""

    operator: int
    section: Operator
    row: Callable[[Any], Expression] | None
    joint: Callable[[Any, Rows], Verdicts] | None
    ledger: Ledger

    @property
    def name(self) -> str:
        """Number and name of the operator, and which of its functions this is."""
        return f"{self.operator} {self.section.op}{' between rows' if self.joint else ''}"


@dataclass
class Outcome:
    """What a recipe made of a dataset.

    Attributes:
        rows: facts about and verdicts on every row.
        rejected_by: by place, the number of the operator that rejected the row; None for a sound row.
        copies: by place, how often a sound row is written, where that is not once.
        replaced: by column of a row and place, what operators put there.
        executed: shards that each operator looked at in this run, by the stage's name; others were done before.
    """

    rows: Rows
    rejected_by: list[int | None]
    copies: dict[int, int] = field(default_factory=dict)
    replaced: dict[str, dict[int, Any]] = field(default_factory=dict)
    executed: Counter[str] = field(default_factory=Counter)


def apply_recipe(
    dataset: Dataset,
    operators: Sequence[Operator],
    state: Path,
    *,
    evaluation: tuple[Rows, ...] = (),
    workers: int = 1,
    progress: ProgressFunction = no_progress,
) -> Outcome:
    """Run the operators, in order, over all rows.

    Args:
        dataset: its files may be read by other machines, where Daft runs on Ray.
        operators: a recipe (components.curate.recipe.check_recipe).
        state: directory for what was found; a run that is given it again continues.
        evaluation: what ``decontaminate`` compares with.
        workers: row groups under way at once.
        progress: told of shards.
    """
    stages = _stages(dataset, operators, evaluation, state)
    done: list[Stage] = []
    rows = Rows(dataset, [None] * len(dataset), lambda name: _load(done, name), evaluation)
    outcome = Outcome(rows, [None] * len(dataset))
    for stage in stages:
        mark_used(stage.ledger.directory)
    while len(done) < len(stages):
        rest = stages[len(done) :]
        if rest[0].joint:
            _run_joint(rest[0], outcome, progress)
            segment = rest[:1]
        else:
            count = next((place for place, stage in enumerate(rest) if stage.joint), len(rest))
            segment = rest[:count]
            _run_segment(segment, done, outcome, workers, progress)
        for stage in segment:
            done.append(stage)
            _note_verdicts(stage, outcome)
        rows.forget()
    return outcome


def _stages(dataset: Dataset, operators: Sequence[Operator], evaluation: tuple[Rows, ...], state: Path) -> list[Stage]:
    """The functions to run, each with a key that chains all before it."""
    shards = partition(dataset)
    stages: list[Stage] = []
    groups = [[group[0].name, group[1], group[2]] for shard in shards for group in shard.groups]
    key = _hash([dataset.manifest["payload_sha256"], groups, [shard.rows for shard in shards], _engine_version()])
    compared = [rows.dataset.manifest["payload_sha256"] for rows in evaluation]
    for number, section in enumerate(operators):
        functions = implementation(section)
        key = _hash([key, _contents(section.model_dump()), _code_of(functions.module)])
        directory = state / f"{number:02d}-{section.op}"
        if functions.row:
            ledger = Ledger(directory.with_name(f"{directory.name}-{key[:16]}"), key, shards)
            stages.append(Stage(number, section, functions.row, None, ledger))
        if functions.joint:
            key = _hash([key, "joint", compared])
            ledger = Ledger(directory.with_name(f"{directory.name}-joint-{key[:16]}"), key, shards)
            stages.append(Stage(number, section, None, functions.joint, ledger))
    return stages


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _contents(value: Any) -> Any:
    """A section in which a path stands for what lies there."""
    if isinstance(value, Path):
        return (payload_sha256(value) if value.is_dir() else file_sha256(value)) if value.exists() else str(value)
    if isinstance(value, dict):
        return {name: _contents(item) for name, item in value.items()}
    return [_contents(item) for item in value] if isinstance(value, list | tuple) else value


@functools.cache
def _code_of(module: Path) -> str:
    return code_version(module, _REPOSITORY)


@functools.cache
def _engine_version() -> list[str]:
    return [file_sha256(Path(__file__).with_name(name)) for name in ("engine.py", "ledger.py", "rows.py")]


def _run_segment(
    segment: list[Stage], before: list[Stage], outcome: Outcome, workers: int, progress: ProgressFunction
) -> None:
    """Run consecutive row functions over the shards that lack one of them."""
    shards = segment[0].ledger.shards
    lacking = [_first_lacking(segment, index) for index in range(len(shards))]
    todo = [(index, first) for index, first in enumerate(lacking) if first is not None]
    label = ", ".join(stage.section.op for stage in segment)
    finished = len(shards) - len(todo)
    progress(label, finished, len(shards))
    with ThreadPoolExecutor(workers) as pool:
        under_way: deque[tuple[int, int, Future[list[pa.Table]]]] = deque()
        for index, first in todo:
            known = [*before, *segment[:first]]
            under_way.append((index, first, pool.submit(_find, segment[first:], known, index)))
            # One shard ahead of the workers and no more: what is under way is what is in memory.
            while len(under_way) > workers or (under_way and index == todo[-1][0]):
                index_done, first_done, answer = under_way.popleft()
                _keep(segment[first_done:], index_done, answer.result(), outcome)
                finished += 1
                progress(label, finished, len(shards))


def _first_lacking(segment: list[Stage], index: int) -> int | None:
    """The first stage that has not finished this shard; None where all have."""
    return next((place for place, stage in enumerate(segment) if not stage.ledger.done(index)), None)


def _keep(stages: list[Stage], index: int, tables: list[pa.Table], outcome: Outcome) -> None:
    for stage, table in zip(stages, tables, strict=True):
        stage.ledger.write(index, table)
        outcome.executed[stage.name] += 1


def _find(stages: list[Stage], before: list[Stage], index: int) -> list[pa.Table]:
    """Findings of each stage about a shard: one query per row group."""
    known = _known(before, index)
    parts, first = [], 0
    for path, group, count in stages[0].ledger.shards[index].groups:
        part = _query(stages, path, group, known.slice(first, count) if known is not None else None)
        if part.num_rows != count:
            raise RuntimeError(f"{path}: row group {group} has {count} rows, Daft read {part.num_rows}")
        parts.append(part)
        first += count
    found = pa.concat_tables(parts)
    tables = []
    for place, stage in enumerate(stages):
        struct = found[f"_{place}"].combine_chunks()
        columns = {name: struct.field(number) for number, name in enumerate(field.name for field in struct.type)}
        columns["reason"] = _with_category(stage.section, columns["reason"])
        # The first operator of a recipe also keeps what every joint one may ask for.
        base = {} if before or place else {name: found[name] for name in BASE_FACTS}
        tables.append(pa.table(base | columns))
    return tables


def _with_category(section: Operator, reasons: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(f"{section.category}: ", reasons.cast(pa.string()), "")


def _known(before: list[Stage], index: int) -> pa.Table | None:
    """What the stages before found about a shard: newest facts, and the first reason; None where nothing ran yet."""
    if not before:
        return None
    columns: dict[str, Any] = {}
    for place, stage in enumerate(before):
        table = stage.ledger.read(index)
        for name in table.column_names:
            if name == "reason":
                columns[name] = pc.coalesce(columns[name], table[name]) if place else table[name]
            elif name in ROW_SCHEMA.names and name in columns:
                columns[name] = pc.coalesce(table[name], columns[name])
            elif place or name not in BASE_FACTS:
                columns[name] = table[name]
    return pa.table(columns)


def _query(stages: list[Stage], path: Path, group: int, known: pa.Table | None) -> pa.Table:
    """Run the stages on one row group; columns: the base facts, and ``_0``, ``_1``, ... with each stage's struct."""
    # Daft takes a path for a pattern: its special characters are escaped.
    frame = daft.read_parquet([re.sub(r"([\\*?\[\]{}])", r"\\\1", str(path))], row_groups=[[group]])
    frame = frame.with_column(_ROW, daft.functions.monotonically_increasing_id())
    if known is None:
        frame = frame.with_column("reason", lit(None).cast(DataType.string()))
    else:
        columns = {f"_known_{name}": known[name] for name in known.column_names}
        rows = {_ROW: pa.array(range(known.num_rows), pa.uint64())}
        frame = frame.join(daft.from_arrow(pa.table(rows | columns)), on=_ROW, how="left")
        for name in known.column_names:
            frame = _put(frame, name, col(f"_known_{name}"))
    for place, stage in enumerate(stages):
        struct = f"_{place}"
        frame = frame.with_column(struct, stage.row(stage.section))
        for name in frame.schema()[struct].dtype.fields:
            value = col(struct).get(name)
            if name == "reason":
                value = daft.functions.coalesce(col("reason"), lit(f"{stage.section.category}: ") + value)
            frame = _put(frame, name, value)
    chosen = [*BASE_FACTS, *(f"_{place}" for place in range(len(stages)))]
    return frame.sort(_ROW).select(*(col(name) for name in chosen)).to_arrow()


def _put(frame: daft.DataFrame, name: str, value: Expression) -> daft.DataFrame:
    """A fact as a column; a column of the row is replaced where the value is not null."""
    if name in ROW_SCHEMA.names:
        value = daft.functions.coalesce(value, col(name))
    return frame.with_column(name, value)


def _run_joint(stage: Stage, outcome: Outcome, progress: ProgressFunction) -> None:
    """Have a joint operator decide, unless it has."""
    shards = stage.ledger.shards
    if stage.ledger.complete():
        return
    progress(stage.name, 0, len(shards))
    verdicts = stage.joint(stage.section, outcome.rows)
    for index, shard in enumerate(shards):
        places = range(shard.first, shard.first + shard.rows)
        reasons = [verdicts.reasons.get(place) for place in places]
        copies = [verdicts.copies.get(place) for place in places]
        table = pa.table({"reason": _with_category(stage.section, pa.array(reasons, pa.string()))})
        stage.ledger.write(index, table.append_column("copies", pa.array(copies, pa.int64())))
        outcome.executed[stage.name] += 1
        progress(stage.name, index + 1, len(shards))


def _note_verdicts(stage: Stage, outcome: Outcome) -> None:
    """Take over what a finished stage says about every row."""
    for place, reason in enumerate(stage.ledger.column("reason")):
        if reason is not None and outcome.rows.reasons[place] is None:
            outcome.rows.reasons[place], outcome.rejected_by[place] = reason, stage.operator
    for name in stage.ledger.columns():
        if name == "copies" and stage.joint:
            outcome.copies |= _given(stage.ledger.column(name))
        elif name in ROW_SCHEMA.names and (stage.operator or name not in BASE_FACTS):
            outcome.replaced.setdefault(name, {}).update(_given(stage.ledger.column(name)))


def _given(values: list[Any]) -> dict[int, Any]:
    return {place: value for place, value in enumerate(values) if value is not None}


def _load(done: list[Stage], name: str) -> list[Any]:
    """The newest fact of a name; a column of the row is what the last operator that changed it put there."""
    having = [stage.ledger for stage in done if name in stage.ledger.columns()]
    if not having and all(stage.ledger.shards for stage in done):
        raise KeyError(f"no operator before has made the fact {name!r}")
    values = having[0].column(name) if having else []
    for ledger in having[1:]:
        newer = ledger.column(name)
        values = [
            old if new is None and name in ROW_SCHEMA.names else new for old, new in zip(values, newer, strict=True)
        ]
    return values
