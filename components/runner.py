"""Run one step, or take its outputs from the store. The KFP components and ``dvc.yaml`` both come through here.

A step is done when the store holds its key: SHA-256 over the payload hashes of its inputs, its section of the profile,
the version of its code and the lock of its dependencies. A cached step imports neither the step, nor torch, nor MLflow.
"""

import hashlib
import importlib
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from components import provenance
from components.code_version import code_version
from components.context import StepResult, read_result
from components.failure import reported
from components.launcher import StepCall, launcher_for, ranks_of
from components.progress import ProgressFile, append_line
from components.settings import REPOSITORY, Settings
from components.store import COMPUTED, Entry, Store
from components.tracking import MlflowRegistry, StepRecord, check_server, flat_scores, track
from model.data.artifact import file_sha256, link_tree, payload_sha256, write_atomic
from model.data.errors import InputError
from model.machine import computes_bfloat16

SCHEMA_VERSION = 1
STEPS_FILE = "steps.jsonl"
_SEE_REGISTRY = frozenset({"gate", "register", "deploy"})
ALWAYS_RUN = _SEE_REGISTRY | {"version"}
"""Steps that look at or change the world outside the store."""


def run_step(
    step: str,
    config_json: str,
    inputs: Mapping[str, str | Path],
    outputs: Mapping[str, str | Path],
    *,
    metadata: Mapping[str, dict[str, Any]] | None = None,
    metrics: dict[str, Any] | None = None,
) -> StepResult:
    """Run a step as this process's task: errors are printed and reported, and end the process.

    Args:
        step: name of a folder of ``components``.
        config_json: its section of the profile.
        inputs: directories that exist, by the names of the step's parameters.
        outputs: directories to make, likewise.
        metadata: per output, a mapping that receives its hash and key (metadata of a KFP artifact).
        metrics: a mapping that receives the step's numbers (metadata of a KFP Metrics artifact).

    Raises:
        SystemExit: after a user's mistake or a full disk, which are said in one line. Other errors pass through.
    """
    settings = Settings.from_environment()
    with reported(step, settings):
        done = execute_step(step, config_json, paths(inputs), paths(outputs), settings)
    for name, mapping in (metadata or {}).items():
        mapping.update(sha256=done.lineage["outputs"][name], key=done.lineage["key"])
    if metrics is not None:
        metrics.update(done.result.numbers | flat_scores(done.result))
    return done.result


@dataclass(frozen=True)
class Done:
    """A finished step: what it reported, its lineage, and whether it came from the store."""

    result: StepResult
    lineage: dict[str, Any]
    cached: bool


@dataclass(frozen=True)
class _Task:
    """One call of a step, with its identity."""

    step: str
    config: BaseModel
    inputs: dict[str, Path]
    outputs: dict[str, Path]
    input_sha256: dict[str, str]
    code_version: str
    key: str


def paths(named: Mapping[str, str | Path]) -> dict[str, Path]:
    """The same mapping with paths."""
    return {name: Path(path) for name, path in named.items()}


def execute_step(
    step: str, config_json: str, inputs: dict[str, Path], outputs: dict[str, Path], settings: Settings
) -> Done:
    """Run a step or take it from the store, and put its outputs where they are wanted.

    Raises:
        InputError: a user's mistake, one line per problem.
    """
    task = _identify(step, parse_config(step, config_json), inputs, outputs)
    store = Store(settings.store)
    with store.locked(task.key, step):
        entry = store.find(task.key) if step not in ALWAYS_RUN else None
        cached = entry is not None
        if entry is None:
            lineage = _compute(task, store, settings)
            entry = (
                Entry(store.workspace(task.key), lineage) if step in ALWAYS_RUN else store.publish(task.key, lineage)
            )
        for name, target in outputs.items():
            link_tree(entry.outputs[name], target)
        located = {name: str(path) for name, path in (outputs if step in ALWAYS_RUN else entry.outputs).items()}
        if step in ALWAYS_RUN:
            shutil.rmtree(entry.directory)
    if settings.run_dir:
        _note(task, entry, cached, located, settings.run_dir)
    return Done(read_result(entry.lineage), entry.lineage, cached)


def parse_config(step: str, config_json: str) -> BaseModel:
    """The typed section of a step.

    Raises:
        InputError: there is no such step, or the section is wrong: one line per field.
    """
    name = "".join(part.title() for part in step.split("_")) + "Config"
    try:
        section: type[BaseModel] = getattr(importlib.import_module(f"components.{step}.config"), name)
    except ModuleNotFoundError as error:
        if not f"components.{step}.config".startswith(error.name or ""):
            raise
        raise InputError(f"no step is named {step!r}") from None
    try:
        return section.model_validate_json(config_json)
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, (step, *e['loc'])))}: {e['msg']}" for e in error.errors(include_url=False))
        raise InputError("\n".join(lines)) from None


def _identify(step: str, config: BaseModel, inputs: dict[str, Path], outputs: dict[str, Path]) -> _Task:
    module = REPOSITORY / "components" / step / "step.py"
    if not module.is_file():
        raise InputError(f"step {step} is not built yet")
    hashes = {name: _input_sha256(name, path) for name, path in inputs.items()}
    version = code_version(module, REPOSITORY)
    identity = {
        "step": step,
        "inputs": hashes,
        "config": _contents(config.model_dump()),
        "code_version": version,
        "lock_sha256": provenance.lock_sha256(),
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return _Task(step, config, inputs, outputs, hashes, version, key)


def _input_sha256(name: str, path: Path) -> str:
    try:
        return payload_sha256(path)
    except FileNotFoundError:
        raise InputError(f"input {name}: {path}: no such artifact, or an empty one") from None


def _contents(value: Any) -> Any:
    """A configuration as JSON in which a path stands for what lies there: moving it changes nothing, editing does."""
    if isinstance(value, Path):
        if not value.exists():
            return f"nothing at {value}"  # the step itself says best what is missing
        return payload_sha256(value) if value.is_dir() else file_sha256(value)
    if isinstance(value, dict):
        return {name: _contents(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_contents(item) for item in value]
    return value


def _compute(task: _Task, store: Store, settings: Settings) -> dict[str, Any]:
    """Run the step in the workspace of its key, unless that was done and only tracking failed. Returns the lineage."""
    check_server(settings.tracking_uri)
    work = store.workspace(task.key)
    note = work / COMPUTED
    if task.step in ALWAYS_RUN or not note.exists():
        _run(task, work, settings, store)
    computed = json.loads(note.read_text())
    lineage = _lineage(task, computed, work, settings)
    lineage["mlflow"] = _track(task, lineage, store, settings)
    for name in task.outputs:
        write_atomic(work / name / "lineage.json", (json.dumps(lineage, sort_keys=True, indent=1) + "\n").encode())
    shutil.rmtree(settings.state_root / task.key, ignore_errors=True)
    return lineage


def _run(task: _Task, work: Path, settings: Settings, store: Store) -> None:
    """Have the step called; its result is noted when all outputs are there."""
    for leftover in work.iterdir():
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    state_dir = settings.state_root / task.key
    state_dir.mkdir(parents=True, exist_ok=True)
    outputs = {name: work / name for name in task.outputs}
    call = StepCall(
        step=task.step,
        config=task.config,
        inputs=task.inputs,
        outputs=outputs,
        published={n: store.locate(p, task.input_sha256[n]) or p.absolute() for n, p in task.inputs.items()},
        state_dir=state_dir,
        run_dir=settings.run_dir,
        registry=MlflowRegistry(settings.tracking_uri) if task.step in _SEE_REGISTRY else None,
    )
    for name in slow_precisions(task.config):
        slow = "bfloat16 takes tens of times as long as float32 on this processor; auto would choose"
        print(f"fovea: {task.step}.{name}: {slow}", file=sys.stderr, flush=True)
    ProgressFile(settings.run_dir, task.step)("starting", 0, 0)
    started = time.time()
    ranks = ranks_of(task.step, task.config)
    result = launcher_for(ranks).run(call, ranks)
    for name, path in outputs.items():
        if not path.is_dir():
            raise RuntimeError(f"step {task.step} did not make its output {name}")
    computed = {"started": started, "seconds": time.time() - started, **asdict(result)}
    try:
        note = json.dumps(computed, allow_nan=False)
    except ValueError:
        raise InputError(f"it reported a number that is not finite; its state is kept in {state_dir}") from None
    write_atomic(work / COMPUTED, note.encode())


def slow_precisions(config: BaseModel) -> list[str]:
    """Settings that ask for bfloat16 where nothing computes in it."""

    def named(value: Any, name: str) -> Iterator[str]:
        if isinstance(value, BaseModel):
            for field in type(value).model_fields:
                yield from named(getattr(value, field), f"{name}.{field}" if name else field)
        elif value == "bfloat16" and name.rpartition(".")[2] == "precision":
            yield name

    return [] if computes_bfloat16() else list(named(config, ""))


def _lineage(task: _Task, computed: dict[str, Any], work: Path, settings: Settings) -> dict[str, Any]:
    revisions = provenance.revisions(settings)
    return {
        "schema_version": SCHEMA_VERSION,
        "step": task.step,
        "key": task.key,
        "code_version": task.code_version,
        "lock_sha256": provenance.lock_sha256(),
        "config": task.config.model_dump(mode="json"),
        "inputs": task.input_sha256,
        "outputs": {name: payload_sha256(work / name) for name in task.outputs},
        **computed,
        **revisions,
        "environment": provenance.environment(),
    }


def _track(task: _Task, lineage: dict[str, Any], store: Store, settings: Settings) -> dict[str, str]:
    tags = {name: lineage[name] for name in ("dvc_rev", "git_sha", "kfp_run_id", "image_digest", "profile")}
    tags |= {"code_version": task.code_version, "key": task.key, "step": task.step}
    if settings.run_id:
        tags["fovea_run_id"] = settings.run_id
    final = task.outputs if task.step in ALWAYS_RUN else {name: store.root / task.key / name for name in task.outputs}
    record = StepRecord(
        step=task.step,
        config=lineage["config"],
        inputs={name: (path.absolute().as_uri(), task.input_sha256[name]) for name, path in task.inputs.items()},
        outputs={name: (final[name].absolute().as_uri(), sha256) for name, sha256 in lineage["outputs"].items()},
        tags=tags,
        result=read_result(lineage),
        started=lineage["started"],
        seconds=lineage["seconds"],
        model_id=_model_id(task.inputs.get("model")),
    )
    try:
        return track(record, settings.tracking_uri)
    except InputError as error:
        kept = "" if task.step in ALWAYS_RUN else "; the step's outputs are kept, and the same command continues"
        raise InputError(f"{error}{kept}") from error


def _model_id(model: Path | None) -> str | None:
    """The logged model that the lineage beside a model names."""
    lineage = model / "lineage.json" if model else None
    if lineage is None or not lineage.is_file():
        return None
    return json.loads(lineage.read_text()).get("mlflow", {}).get("model_id")


def _note(task: _Task, entry: Entry, cached: bool, located: dict[str, str], run_dir: Path) -> None:
    """Tell the pipeline run what became of this step."""
    outputs = {name: {"path": path, "sha256": entry.lineage["outputs"][name]} for name, path in located.items()}
    record = {
        "step": task.step,
        "key": task.key,
        "cached": cached,
        "seconds": entry.lineage["seconds"],
        "outputs": outputs,
    }
    append_line(run_dir / STEPS_FILE, record)
