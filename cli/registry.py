"""``fovea promote`` and ``fovea rollback``: move the champion's alias in the model registry."""

from typing import Annotated

import typer

NameOption = Annotated[str, typer.Option("--name", help="Name in the model registry.")]


def promote(
    version: Annotated[int, typer.Argument(min=1, help="Version that becomes the champion.")],
    name: NameOption = "fovea",
) -> None:
    """Make a registered version the champion.

    Example: `fovea promote 3`
    """
    from components import tracking
    from components.settings import Settings

    champion = tracking.promote(name, version, Settings.from_environment().tracking_uri)
    print(f"{name}: version {champion.version} is the champion")


def rollback(name: NameOption = "fovea") -> None:
    """Give the alias back to the champion before this one; done again, it goes one further back.

    Example: `fovea rollback`
    """
    from components import tracking
    from components.settings import Settings

    champion = tracking.rollback(name, Settings.from_environment().tracking_uri)
    print(f"{name}: version {champion.version} is the champion again")


def mount(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(promote)
    app.command()(rollback)
