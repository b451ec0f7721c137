"""The three servers, running on the tiny random model of the other tests."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.deploy.config import DeployConfig
from components.deploy.step import render_processes
from serving import launch
from serving.launch import Served


@pytest.fixture(scope="session")
def served(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The real servers, started from what the deploy step renders."""
    processes = render_processes(DeployConfig())
    for process in processes[:2]:
        process["args"] += ["--settings", json.dumps({"threads": 1})]
    directory = tmp_path_factory.mktemp("deployment")
    model = {"name": "fovea", "version": 1, "storage_uri": tiny_directory.as_uri(), "sha256": "0" * 64}
    document = {"schema_version": 1, "model": model, "processes": processes}
    (directory / "deployment.json").write_text(json.dumps(document))
    with launch.serving(directory, directory / "serve") as running:
        yield running
