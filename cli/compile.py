"""``fovea compile``: the pipeline of a profile, as a file for a Kubeflow cluster."""

from pathlib import Path
from typing import Annotated

import typer

from cli.run import ProfileOption, SetOption, choose_profile


def compile_command(
    profile: ProfileOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: out/compiled/PROFILE.yaml.")
    ] = None,
    settings: SetOption = None,
) -> None:
    """Write the pipeline of a profile for a Kubeflow cluster, and say what of the profile it leaves out.

    Example: `fovea compile --profile internvl3_5_8b -o internvl.yaml`
    """
    from components.settings import Settings
    from pipelines.compile import compile_profile

    chosen = choose_profile(profile, settings)
    path = output or Settings.from_environment().out / "compiled" / f"{chosen.name}.yaml"
    for line in compile_profile(chosen, path):
        typer.echo(f"note: {line}", err=True)
    typer.echo(path)


def mount(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compile")(compile_command)
