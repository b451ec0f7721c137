"""What ends a command from outside: one line that names the command that continues, and a status of its own."""

import sys

import pytest
from typer.testing import CliRunner

from cli.errors import Terminated
from cli.main import app
from model.training.stopping import Stopped


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "fovea: interrupted; what is done is kept; to continue: fovea profiles"),
        (Terminated(), 143, "fovea: interrupted; what is done is kept; to continue: fovea profiles"),
        (
            Stopped("sft stopped after step 2 of 9"),
            143,
            "fovea: sft stopped after step 2 of 9; to continue: fovea profiles",
        ),
    ],
)
def test_an_end_from_outside_is_one_line_and_a_status(monkeypatch, error, status, line):
    def end():
        raise error

    monkeypatch.setattr("pipelines.profile.profile_names", end)
    monkeypatch.setattr(sys, "argv", ["fovea", "profiles"])
    result = CliRunner().invoke(app, ["profiles"])
    assert result.exit_code == status
    assert result.stderr.splitlines() == [line]
