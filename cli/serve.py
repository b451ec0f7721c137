"""``fovea serve`` and ``fovea stop``: the three servers on this machine.

Imports of the servers stay inside the functions: ``fovea --help`` must not wait for them.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from model.data.errors import InputError

_Name = Annotated[str, typer.Option(help="Name of the deployment, among those on this machine.")]


def _out() -> Path:
    return Path(os.environ.get("FOVEA_OUT") or "out")


def serve(
    model: Annotated[
        Path | None,
        typer.Argument(help="Model directory, or what `deploy` rendered. By default the last run's deployment."),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the gateway; 0 takes a free one.", min=0, max=65535)] = 0,
    host: Annotated[str, typer.Option(help="Address of the gateway. The predictors stay on 127.0.0.1.")] = "127.0.0.1",
    name: _Name = "fovea",
    language_url: Annotated[
        str | None, typer.Option(help="An external language server (vLLM with --enable-mm-embeds) in place of ours.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when the servers are ready.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="One line of JSON when ready.")] = False,
) -> None:
    """Serve a model: vision predictor, language predictor and gateway.

    Examples:

    - `fovea serve` serves what the last run deployed, until Ctrl-C

    - `fovea serve my-model --port 8000 --detach` returns when it is ready; `fovea stop` ends it
    """
    from serving import launch

    path = model or _out() / "line" / "deploy" / "deployment"
    if model is None and not path.exists():
        raise InputError(f"{path}: nothing has been deployed here yet; run the line, or name a model directory")
    directory = _out() / "serve"
    options: dict[str, Any] = {"name": name, "host": host, "port": port, "language_url": language_url}
    report = (lambda line: None) if json_output else (lambda line: print(line, file=sys.stderr))
    served = launch.start(path, directory, detach=detach, report=report, **options)
    try:
        _announce(served, detach, json_output)
        if not detach:
            launch.wait(served, directory)
    except KeyboardInterrupt:
        launch.stop(directory, name)
    except BaseException:
        if not detach:
            launch.stop(directory, name)
        raise


def _announce(served: Any, detach: bool, json_output: bool) -> None:
    if json_output:
        pids = {process.name: process.pid for process in served.processes}
        print(json.dumps({"name": served.name, "endpoint": served.endpoint, "model": served.model, "pids": pids}))
    else:
        print(f"{served.model} is served at {served.endpoint}/v1 (OpenAI chat completions)")
        print('ask:  fovea chat IMAGE "QUESTION"')
        print("end:  fovea stop" if detach else "end:  Ctrl-C")
    sys.stdout.flush()


def stop(
    name: Annotated[str | None, typer.Argument(help="Name of the deployment; all of them when left out.")] = None,
) -> None:
    """Stop what `fovea serve` started.

    Example:

    - `fovea stop`
    """
    from serving import launch

    directory = _out() / "serve"
    stopped = [each for each in ([name] if name else launch.names(directory)) if launch.stop(directory, each)]
    if name and not stopped:
        raise InputError(f"{name} is not being served (no {directory / name}.json)")
    print(f"stopped {', '.join(stopped)}" if stopped else "nothing is being served")
