"""``fovea run``, ``fovea stage``, ``fovea evaluate``: the line, one step of it, one model."""

import json
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import resume_command
from model.data.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cli.line import Line
    from components.runner import Done
    from components.settings import Settings
    from pipelines.profile import Profile

ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", "-p", help="Name of a profile, or path of a YAML file; default: what params.yaml says."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change one key, e.g. sft.training.learning_rate=5e-4."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
InputOption = Annotated[list[str] | None, typer.Option("--input", metavar="NAME=DIR", help="Once for each input.")]
OutputOption = Annotated[list[str] | None, typer.Option("--output", metavar="NAME=DIR", help="Once for each output.")]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", help="Train on this directory (docs/data.md); the profile is then tiny by default."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="No progress; one line of JSON at the end.")]


def choose_profile(name: str | None, settings: list[str] | None) -> "Profile":
    """The profile that the options describe.

    Raises:
        InputError: a profile, a key or a value is wrong; names it.
    """
    from cli.line import PARAMS
    from pipelines.profile import load_params, load_profile, merge, parse_overrides
    from pipelines.strict_yaml import read_yaml

    changes = parse_overrides(settings or [])
    if name is not None:
        return load_profile(name, changes)
    if not Path(PARAMS).is_file():
        raise InputError(f"there is no {PARAMS} here; name a profile: --profile tiny")
    profile = load_params(Path(PARAMS))
    if not changes:
        return profile
    params = read_yaml(Path(PARAMS), PARAMS)
    return load_profile(params["profile"], merge(params.get("overrides") or {}, changes))


def run(
    profile: ProfileOption = None,
    settings: SetOption = None,
    data: DataOption = None,
    quiet: QuietOption = False,
    machine: JsonOption = False,
) -> None:
    """Run the whole line through a KFP pipeline on this machine. What the store holds is not computed again.

    With `--data`, on a directory of your own: images and a CSV of questions and answers, or any format of docs/data.md.

    Examples: `fovea run --profile micro`, `fovea run --data meters`, `fovea run --set sft.training.learning_rate=5e-4`
    """
    from cli.line import alone, run_line, settings_for
    from cli.own_data import profile_on
    from cli.progress import choose_mode

    chosen, found = profile_on(data, profile, settings) if data else (choose_profile(profile, settings), "")
    if found and not (quiet or machine):
        print(f"{data}: {found}")
    surroundings = settings_for(resume_command())
    with alone(surroundings.out):
        line = run_line(chosen, surroundings, choose_mode(quiet, machine), Path.cwd())
    if machine:
        print(json.dumps(_record(line, chosen)))
    else:
        _show(line)
    if not line.run.ok:
        raise typer.Exit(1)


def _record(line: "Line", profile: "Profile") -> dict[str, Any]:
    """What ``--json`` prints."""
    run = {name: value for name, value in asdict(line.run).items() if name != "run_dir"}
    return {"profile": profile.name, **run, "run_dir": str(line.run.run_dir), "dvc_lock_sha256": line.lock_sha256}


def _show(line: "Line") -> None:
    from cli.tables import one_line_total, stage_table, stdout

    console = stdout()
    if line.run.steps:
        console.print(stage_table(line.run.steps, line.lineage))
    if line.run.failure is not None:
        complain_of(line.run.failure)
        return
    print(one_line_total(len(line.run.steps), len(line.run.cached_steps), line.run.seconds))
    print(f"dvc.lock {line.lock_sha256}" if line.lock_sha256 else f"dvc.lock was not written: {line.why_no_lock}")


def complain_of(failure: dict[str, Any]) -> None:
    """One line: the step, what was wrong, its log, and the command that continues."""
    error = " ".join(str(failure["error"]).split())
    step = failure["step"] or "the pipeline"
    text = f"fovea: error: {step}: {error}; log: {failure['log']}; to continue: {failure['resume']}"
    print(text, file=sys.stderr)


def stage(
    step: Annotated[str, typer.Argument(help="Name of a step, e.g. sft.")],
    given: Annotated[list[str] | None, typer.Option("--input", metavar="NAME=DIR", help="Once for each input.")] = None,
    wanted: Annotated[
        list[str] | None, typer.Option("--output", metavar="NAME=DIR", help="Once for each output.")
    ] = None,
    profile: ProfileOption = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run one step on directories, or take its outputs from the store. `dvc repro` calls this.

    Example: `fovea stage sft --input rows=DIR --input heldout=DIR --input init=DIR --output model=DIR`
    """
    from cli.interface import interface_of, named_paths
    from pipelines.profile import section_json

    interface = interface_of(step)
    inputs = named_paths(step, given or [], interface.inputs, "input", interface.optional)
    outputs = named_paths(step, wanted or [], interface.outputs, "output")
    chosen = choose_profile(profile, settings)
    done = _run_here(step, section_json(chosen, step), inputs, outputs, quiet, chosen.name)
    what = "from the store" if done.cached else f"{done.lineage['seconds']:.1f} s"
    print(f"{step}: {what}, key {done.lineage['key'][:12]}")


def _run_here(
    step: str, section: str, inputs: dict[str, Path], outputs: dict[str, Path], quiet: bool, profile: str = ""
) -> "Done":
    """Run a step in this process, with a progress bar, as the same step of a pipeline would run."""
    from cli.line import settings_for
    from cli.progress import ProgressView, choose_mode
    from components.runner import execute_step

    for path in inputs.values():
        if not path.is_dir():
            raise InputError(f"{path}: no such directory")
    wanted = replace(settings_for(resume_command()), profile=profile)
    with _own_run_dir(wanted) as here, ProgressView(here.run_dir, choose_mode(quiet, False)):
        return execute_step(step, section, inputs, outputs, here)


@contextmanager
def _own_run_dir(settings: "Settings") -> "Iterator[Settings]":
    """Settings with a run directory, made for this call where no pipeline gave one."""
    if settings.run_dir is not None:
        yield settings
        return
    settings.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".stage-", dir=settings.out) as directory:
        yield replace(settings, run_dir=Path(directory))


def evaluate(
    model: Annotated[Path, typer.Argument(help="Model directory.")],
    dataset: Annotated[Path, typer.Argument(help="Dataset directory with the rows to answer.")],
    profile: ProfileOption = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
    machine: JsonOption = False,
) -> None:
    """Answer every row of a dataset and score the answers, with 95 % intervals.

    Example: `fovea evaluate out/line/sft/model out/line/collect/heldout`
    """
    from cli.tables import score_table, stdout
    from components.settings import Settings
    from model.data.artifact import payload_sha256
    from model.data.shards import open_dataset
    from pipelines.profile import section_json

    if not (model / "config.json").is_file():
        raise InputError(f"{model}: no model directory (config.json is missing)")
    open_dataset(dataset)
    section = section_json(choose_profile(profile, settings), "evaluate")
    name = f"{payload_sha256(model)[:12]}-{payload_sha256(dataset)[:12]}"
    output = Settings.from_environment().out / "evaluate" / name
    done = _run_here(
        "evaluate", section, {"model": model, "heldout": dataset}, {"evaluation": output}, quiet or machine
    )
    if machine:
        print(json.dumps({"evaluation": str(output), "heldout": done.lineage["heldout"]}))
        return
    stdout().print(score_table(done.lineage["heldout"]))
    print(f"answers and scores: {output}")


def mount(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(run)
    app.command()(stage)
    app.command()(evaluate)
