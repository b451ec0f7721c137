"""``fovea promote`` and ``fovea rollback``: move the champion's alias in the model registry."""

from pathlib import Path
from typing import Annotated

import typer

from model.data.errors import InputError

NameOption = Annotated[str, typer.Option("--name", help="Name in the model registry.")]


def registry_uri() -> str | None:
    """Address of the model registry; None where it would be a database that no run has made yet."""
    from components.settings import Settings

    uri = Settings.from_environment().tracking_uri
    file = uri.removeprefix("sqlite:///")
    return uri if file == uri or Path(file).exists() else None


def _existing_registry() -> str:
    uri = registry_uri()
    if uri is None:
        raise InputError("there is no model registry here yet; run the line, or set MLFLOW_TRACKING_URI")
    return uri


def promote(
    version: Annotated[int, typer.Argument(min=1, help="Version that becomes the champion.")],
    name: NameOption = "fovea",
) -> None:
    """Make a registered version the champion.

    Example: `fovea promote 3`
    """
    from components import tracking

    champion = tracking.promote(name, version, _existing_registry())
    print(f"{name}: version {champion.version} is the champion")


def rollback(name: NameOption = "fovea") -> None:
    """Give the alias back to the champion before this one; done again, it goes one further back.

    Example: `fovea rollback`
    """
    from components import tracking

    champion = tracking.rollback(name, _existing_registry())
    print(f"{name}: version {champion.version} is the champion again")


def mount(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(promote)
    app.command()(rollback)
