"""``fovea serve``, ``stop`` and ``chat``: the three servers on this machine, and a question to them.

Imports of the servers stay inside the functions: ``fovea --help`` must not wait for them.
"""

import base64
import json
import mimetypes
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from model.data.errors import InputError

_MAX_IMAGE_BYTES = 16 << 20
_TIMEOUT_S = 300.0

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


def chat(
    words: Annotated[
        list[str], typer.Argument(metavar="[IMAGE]... QUESTION", help="Images, if any; the question last.")
    ],
    name: _Name = "fovea",
    url: Annotated[str | None, typer.Option(help="Base URL of another gateway, up to and without /v1.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
) -> None:
    """Ask the served model a question, about images or without.

    Examples:

    - `fovea chat digits.png "How many digits are in the image?"`

    - `fovea chat "What can you do?"`
    """
    import openai

    endpoint, model = (url.rstrip("/"), None) if url else _served(name)
    *images, question = words
    content: list[Any] = [_image_part(Path(image)) for image in images] + [{"type": "text", "text": question}]
    with openai.OpenAI(
        base_url=f"{endpoint}/v1", api_key="none", max_retries=0, timeout=_TIMEOUT_S, http_client=_client()
    ) as client:
        try:
            stream = client.chat.completions.create(
                model=model or client.models.list().data[0].id,
                messages=[{"role": "user", "content": content}],
                max_tokens=max_tokens,
                stream=True,
            )
            for event in stream:
                if event.choices:
                    print(event.choices[0].delta.content or "", end="", flush=True)
        except openai.APIConnectionError:
            raise InputError(f"{endpoint}: nobody answers; start it with `fovea serve`") from None
        except openai.APIError as error:
            body = error.body if isinstance(error.body, dict) else {}
            raise InputError(f"{endpoint}: {body.get('message') or error.message}") from None
    print()


def _client() -> Any:
    import httpx

    # The gateway is a neighbour, never behind a proxy of the environment.
    return httpx.Client(trust_env=False, timeout=_TIMEOUT_S)


def _served(name: str) -> tuple[str, str]:
    """Endpoint and model name of a running deployment."""
    from serving import launch

    state = launch.read_state(_out() / "serve", name)
    if state is None or state.ended() is not None:
        raise InputError(f"{name} is not being served; start it with `fovea serve`")
    return state.endpoint, state.model


def _image_part(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_IMAGE_BYTES:
            raise InputError(f"{path}: larger than {_MAX_IMAGE_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    media_type = mimetypes.guess_type(path.name)[0] or "image/png"
    if not media_type.startswith("image/"):
        raise InputError(f"{path}: not an image")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"},
    }
