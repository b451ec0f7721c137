"""``deployment.json``: what the ``deploy`` step rendered, as this room reads it. Imports no torch.

It names the model's storage and three processes, each a module of this room with arguments in which ``{model}``,
``{vision}`` and ``{language}`` stand for the model directory and the addresses that the predictors took.
"""

import json
import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationError

from model.config import Section
from model.data.errors import InputError

FILE = "deployment.json"


class Process(Section):
    """One server process."""

    name: Literal["vision", "language", "gateway"]
    module: Literal["serving.vision", "serving.language", "serving.gateway"]
    """Nothing else is ever run."""
    args: tuple[str, ...]


class DeployedModel(Section):
    """The registry version that is served."""

    name: str
    version: int | None = None
    storage_uri: str
    sha256: str | None = None


class Deployment(Section):
    """The whole file."""

    schema_version: Literal[1] = 1
    model: DeployedModel
    processes: tuple[Process, ...] = Field(min_length=1)

    def model_directory(self) -> Path:
        """The model's local directory.

        Raises:
            InputError: the storage is not on this machine, or the directory is gone.
        """
        return local_model(self.model.storage_uri)


def local_model(storage_uri: str) -> Path:
    """The directory of a registered model's storage.

    Raises:
        InputError: the storage is not on this machine, or the directory is gone.
    """
    parts = urlsplit(storage_uri)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        raise InputError(f"{storage_uri}: not a local directory; fetch the model and serve its directory")
    directory = Path(unquote(parts.path) if parts.scheme else storage_uri)
    if not directory.is_absolute():
        directory = Path(os.environ.get("FOVEA_OUT", "out")) / directory
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}: no model directory (config.json is missing)")
    return directory.resolve()


def read_deployment(path: Path) -> Deployment:
    """The deployment at ``path``: a directory with ``deployment.json``, that file, or a model directory.

    A model directory is served with the defaults of every server.

    Raises:
        InputError: it is none of them.
    """
    if path.is_dir() and (path / FILE).is_file():
        path = path / FILE
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{path}: neither a model directory (config.json) nor a deployment ({FILE})")
        return _of_model(path)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file or directory") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a deployment: {error}") from None
    try:
        return Deployment.model_validate(content)
    except ValidationError as error:
        first = max(error.errors(), key=lambda found: len(found["loc"]))
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{path}: {where}: {first['msg']}") from None


def _of_model(directory: Path) -> Deployment:
    return Deployment(
        model=DeployedModel(name="fovea", storage_uri=str(directory.resolve())),
        processes=(
            Process(name="vision", module="serving.vision", args=("--model", "{model}")),
            Process(name="language", module="serving.language", args=("--model", "{model}")),
            Process(
                name="gateway",
                module="serving.gateway",
                args=("--vision", "{vision}", "--language-url", "http://{language}"),
            ),
        ),
    )
