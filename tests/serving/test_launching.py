"""Starting and stopping servers: mistakes are one line, and nobody is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from model.data.errors import InputError
from serving import launch
from serving.config import GatewayConfig, LanguageServerConfig
from serving.deployment import read_deployment
from serving.process import bind, parse_arguments
from tests.serving.fakes import wait_for


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Looks like a model directory from outside."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


def test_a_port_in_use_is_one_line_that_names_it(model, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port}: Address already in use"):
            launch.start(model, tmp_path / "serve", port=port)
        assert not list((tmp_path / "serve").glob("*.json")) if (tmp_path / "serve").exists() else True


@pytest.mark.parametrize("module", ["serving.vision", "serving.language", "serving.gateway"])
def test_every_server_reports_a_port_in_use_before_it_loads_anything(module, model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        needs = ["--vision", "h:1", "--language-url", "http://h"] if module.endswith("way") else ["--model", str(model)]
        command = [sys.executable, "-m", module, "--port", str(port), *needs]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == done.stderr.splitlines()[-1:]
    assert str(port) in done.stderr and "Traceback" not in done.stderr


def test_a_broken_model_names_the_server_the_reason_and_the_log(model, tmp_path):
    with pytest.raises(InputError) as caught:
        launch.start(model, tmp_path / "serve")
    text = str(caught.value)
    assert "server did not start" in text and str(model) in text and ".log" in text and "\n" not in text
    assert launch.read_state(tmp_path / "serve", "fovea") is None


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "not a deployment"),
        ("[]", "the file"),
        ('{"schema_version": 2}', "schema_version"),
        ('{"model": {"name": "m", "storage_uri": "/m"}, "processes": []}', "processes"),
        ('{"processes": [{"name": "vision", "module": "os", "args": []}]}', "module"),
    ],
)
def test_a_deployment_that_is_none_is_one_line(content, word, tmp_path):
    path = tmp_path / "deployment.json"
    path.write_text(content)
    with pytest.raises(InputError, match=word) as caught:
        read_deployment(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["s3://bucket/model", "file:///nowhere/at/all", "missing"])
def test_storage_that_is_not_here_is_named(uri, tmp_path):
    document = {
        "model": {"name": "m", "storage_uri": uri},
        "processes": [{"name": "gateway", "module": "serving.gateway", "args": []}],
    }
    (tmp_path / "deployment.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=uri.removeprefix("file://")):
        read_deployment(tmp_path).model_directory()


def test_neither_a_model_nor_a_deployment(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=str(path)):
            read_deployment(path)


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--settings", "{"], "not JSON"),
        (["--settings", "[]"], "object"),
        (["--settings", '{"max_imagse": 1}'], "max_imagse"),
        (["--port", "70000"], "port"),
    ],
)
def test_settings_that_are_none_are_one_line(argv, word):
    with pytest.raises(InputError, match=word):
        parse_arguments(LanguageServerConfig, ["--model", "m", *argv], model=True)
    with pytest.raises(InputError, match="language_url"):
        parse_arguments(GatewayConfig, ["--vision", "h:1", "--language-url", "ftp://h"], model=False)


def test_port_zero_is_a_free_port():
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", 0) as second:
        assert first.getsockname()[1] != second.getsockname()[1]


PARENT = """
import os, subprocess, sys
child = "import time, serving.process; serving.process.die_with_parent({}); print(1, flush=True); time.sleep(99)"
command = [sys.executable, "-c", child.format(os.getpid())]
made = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
made.stdout.readline()
print(made.pid, flush=True)
made.wait()
"""


def test_a_killed_launcher_leaves_no_server():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    started = launch._start_ticks(child)
    assert started is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: launch._start_ticks(child) != started)


def test_a_child_whose_parent_is_gone_already_does_not_start():
    code = "from serving.process import die_with_parent; die_with_parent(1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode != 0 and "parent process 1 is gone" in done.stderr


def test_stop_ends_recorded_processes_and_spares_a_stranger_with_the_same_id(tmp_path):
    sleepers = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    ours, stranger = sleepers
    processes = [
        launch.ServerProcess("vision", ours.pid, launch._start_ticks(ours.pid), 1, "log"),
        launch.ServerProcess("language", stranger.pid, 1, 2, "log"),
    ]
    tmp_path.mkdir(exist_ok=True)
    launch._write_state(tmp_path, launch.Served("x", "http://h", "fovea", "m", processes))
    assert launch.names(tmp_path) == ["x"]
    assert launch.stop(tmp_path, "x") and not launch.stop(tmp_path, "x")
    assert ours.wait() == -signal.SIGTERM
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_served_name_is_not_started_twice(model, tmp_path):
    process = launch.ServerProcess("vision", os.getpid(), launch._start_ticks(os.getpid()), 1, "log")
    launch._write_state(tmp_path, launch.Served("fovea", "http://h:1", "fovea", "m", [process]))
    with pytest.raises(InputError, match="being served at http://h:1"):
        launch.start(model, tmp_path)
