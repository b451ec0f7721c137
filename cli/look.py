"""``fovea profiles`` and ``fovea status``: what there is to run, and what is in ``out``."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.registry import registry_uri

if TYPE_CHECKING:
    from cli.dashboard import Dashboard

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
    """Say what is in ``out``: the run that goes on, or the last one, and how its training goes; the registry's aliases;
    what is being served.

    Opening the registry takes seconds of a processor: while a run goes on, only `--json` does.

    Examples: `fovea status`, `watch fovea status`
    """
    from cli.dashboard import newest_run, read_dashboard
    from components.settings import Settings

    settings = Settings.from_environment()
    run_dir = newest_run(settings.out)
    run = read_dashboard(run_dir, settings.out / "run.lock") if run_dir else None
    busy = run is not None and run.state == "running"
    registry = [] if busy and not machine else _registry()
    serving = _serving(settings.out / "serve")
    if machine:
        last = run.record() if run else None
        print(json.dumps({"out": str(settings.out), "last_run": last, "registry": registry, "serving": serving}))
    else:
        _show(settings.out, run, registry, serving)


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


def _show(out: Path, run: "Dashboard | None", registry: list[dict[str, Any]], serving: list[dict[str, Any]]) -> None:
    from cli.dashboard import render

    print(f"in {out}")
    if run is None:
        print("no run yet; try: fovea run --profile micro")
    else:
        encoding = (sys.stdout.encoding or "").lower().replace("-", "")
        print("\n".join(render(run, unicode=encoding == "utf8")))
    for model in registry:
        print(f"{model['name']} version {model['version']} is the {model['alias']}: {model['storage_uri']}")
    for served in serving:
        dead = [name for name, alive in served["alive"].items() if not alive]
        note = f" (not running: {', '.join(dead)})" if dead else ""
        print(f"serving {served['name']} at {served['endpoint']}{note}")


def mount(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(profiles)
    app.command()(status)
