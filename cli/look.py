"""``fovea profiles`` and ``fovea status``: what there is to run, and what is in ``out``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.registry import registry_uri

JsonOption = Annotated[bool, typer.Option("--json", help="One line of JSON.")]


def profiles(machine: JsonOption = False) -> None:
    """List the profiles that come with Fovea.

    Example: `fovea profiles`
    """
    from pipelines.profile import load_profile, planned_stages, profile_names

    found = [load_profile(name) for name in profile_names()]
    if machine:
        keys = ("name", "description", "source", "family", "line")
        rows = [{key: getattr(profile, key) for key in keys} for profile in found]
        print(json.dumps([row | {"planned": planned_stages(p)} for row, p in zip(rows, found, strict=True)]))
        return
    width = max(len(profile.name) for profile in found)
    for profile in found:
        planned = planned_stages(profile)
        note = f" (not built yet: {', '.join(planned)})" if planned else ""
        print(f"{profile.name:<{width}}  {profile.description}{note}")


def status(machine: JsonOption = False) -> None:
    """Say what is in ``out``: the last run and its steps, the registry's aliases, what is being served.

    Example: `fovea status`
    """
    from components.settings import Settings

    settings = Settings.from_environment()
    found = {
        "out": str(settings.out),
        "last_run": _last_run(settings.out / "runs"),
        "registry": _registry(),
        "serving": _serving(settings.out / "serve"),
    }
    if machine:
        print(json.dumps(found))
    else:
        _show(found)


def _last_run(runs: Path) -> dict[str, Any] | None:
    """The newest pipeline run: its steps, and its failure if it had one."""
    from pipelines.runners import read_steps

    newest = max((path for path in runs.glob("*") if path.is_dir()), default=None)
    if newest is None:
        return None
    failure = newest / "failure.json"
    return {
        "run_id": newest.name,
        "steps": read_steps(newest),
        "failure": json.loads(failure.read_text()) if failure.exists() else None,
    }


def _registry() -> list[dict[str, Any]]:
    """Versions that hold an alias."""
    from components.tracking import MlflowRegistry

    uri = registry_uri()
    if uri is None:
        return []
    registry = MlflowRegistry(uri)
    aliases = ("champion", "challenger")
    found = [(alias, registry.by_alias(name, alias)) for name in registry.names() for alias in aliases]
    return [
        {"name": model.name, "alias": alias, "version": model.version, "storage_uri": model.storage_uri}
        for alias, model in found
        if model is not None
    ]


def _serving(directory: Path) -> list[dict[str, Any]]:
    """The recorded deployments of this machine, and which of their processes are alive."""
    from serving.launch import names, read_state

    states = [state for name in names(directory) if (state := read_state(directory, name))]
    return [
        {
            "name": state.name,
            "endpoint": state.endpoint,
            "storage": state.storage,
            "alive": {process.name: process.alive() for process in state.processes},
        }
        for state in states
    ]


def _show(found: dict[str, Any]) -> None:
    run = found["last_run"]
    print(f"in {found['out']}")
    if run is None:
        print("no run yet; try: fovea run --profile micro")
    else:
        print(f"last run {run['run_id']}" + ("" if run["failure"] is None else ", failed"))
        for step in run["steps"]:
            how = "from the store" if step["cached"] else f"{step['seconds']:.1f} s"
            print(f"  {step['step']:<10} {how:<15} key {step['key'][:12]}")
        if run["failure"] is not None:
            print(f"  {run['failure']['step']}: {run['failure']['error']}")
            print(f"  log: {run['failure']['log']}; to continue: {run['failure']['resume']}")
    for model in found["registry"]:
        print(f"{model['name']} version {model['version']} is the {model['alias']}: {model['storage_uri']}")
    for served in found["serving"]:
        dead = [name for name, alive in served["alive"].items() if not alive]
        note = f" (not running: {', '.join(dead)})" if dead else ""
        print(f"serving {served['name']} at {served['endpoint']}{note}")


def mount(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(profiles)
    app.command()(status)
