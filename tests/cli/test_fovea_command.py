"""The command as a whole: quick to start, documented, honest about what a step takes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cli.interface import interface_of
from cli.main import app
from pipelines.profile import built_stages

COMMANDS = [
    *("adapter", "chat", "compile", "convert", "critic", "data", "demo", "evaluate", "look", "profiles", "promote"),
    *("rollback", "run", "serve", "stage", "status", "stop"),
]


def test_help_lists_every_command():
    listed = get_command(app).commands
    assert sorted(listed) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"fovea {command}" in result.output
    assert "xample" in result.output


def test_help_imports_nothing_heavy():
    script = "import sys, cli.main; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "kfp", "mlflow", "numpy", "pyarrow", "dvc", "openai", "httpx", "kserve"}
    assert heavy.isdisjoint(done.stdout.split())


@pytest.mark.parametrize("step", built_stages())
def test_interface_of_a_step_is_the_signature_of_its_run(step):
    tree = ast.parse((Path(__file__).parents[2] / "components" / step / "step.py").read_text())
    run = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    interface = interface_of(step)
    named = [argument.arg for argument in run.args.kwonlyargs if argument.arg != "context"]
    assert [*interface.inputs, *interface.outputs] == named


def test_status_of_an_empty_place_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEA_OUT", str(tmp_path / "out"))
    result = CliRunner().invoke(app, ["status"])
    assert result.exit_code == 0
    assert "fovea run --profile micro" in result.output
    assert not (tmp_path / "out").exists()


def test_profiles_are_listed_with_what_is_not_built_yet():
    output = CliRunner().invoke(app, ["profiles"]).output
    assert "micro" in output
    assert "not built yet: " in next(line for line in output.splitlines() if line.startswith("qwen2_5_vl_7b "))
