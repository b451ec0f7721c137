"""The first steps of `micro` give the same bytes in a container of fovea-train as on the host, each with its own store.

Runs where a Docker engine answers and infra/images/build has made the image.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import docker
import pytest
from mlflow.tracking import MlflowClient

from model.data.artifact import payload_sha256

IMAGE = "fovea-train:latest"
STEPS = ["collect", "curate", "pretrain"]
OUTPUTS = {"corpus", "heldout", "tokenizer", "transcriptions", "questions", "model"}


def missing() -> str | None:
    """What keeps this test from running here."""
    try:
        docker.from_env().images.get(IMAGE)
    except docker.errors.ImageNotFound:
        return f"there is no image {IMAGE} (infra/images/build)"
    except docker.errors.DockerException as error:
        return f"no Docker engine answers: {str(error).splitlines()[0][:120]}"
    return None


MISSING = missing()
pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(900),
    pytest.mark.skipif(MISSING is not None, reason=f"NOT CHECKED IN DOCKER: {MISSING}"),
]


def run_first_steps(out: Path, *image: str) -> dict[str, dict]:
    """The record of each finished step, by name."""
    out.mkdir()
    with (out / "log.txt").open("w") as log:
        command = [sys.executable, str(Path(__file__).with_name("run_first_steps.py")), str(out), *image]
        done = subprocess.run(command, cwd=out, stdout=log, stderr=log, timeout=600)
    hint = "\nIs the image older than this tree? infra/images/build train" if image else ""
    assert done.returncode == 0, (out / "log.txt").read_text()[-4000:] + hint
    records = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    return {record["step"]: record for record in records}


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> dict[str, dict]:
    return run_first_steps(tmp_path_factory.mktemp("host") / "out")


@pytest.fixture(scope="module")
def container_out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("container") / "out"


@pytest.fixture(scope="module")
def container(container_out) -> dict[str, dict]:
    return run_first_steps(container_out, IMAGE)


def hashes(records: dict[str, dict]) -> dict[str, str]:
    """SHA-256 of each output, of the files as they lie on disk: a runner's word that it succeeded is not enough."""
    return {
        name: payload_sha256(Path(output["path"]))
        for record in records.values()
        for name, output in record["outputs"].items()
    }


def test_steps_have_the_same_identity_in_a_container(host, container):
    assert list(container) == list(host) == STEPS
    assert {s: r["key"] for s, r in container.items()} == {s: r["key"] for s, r in host.items()}
    assert not any(record["cached"] for record in [*host.values(), *container.values()])


def test_outputs_are_the_same_bytes_in_a_container(host, container):
    assert hashes(container) == hashes(host)
    assert hashes(host).keys() == OUTPUTS


def test_container_steps_say_which_image_they_ran_in(container):
    image = docker.from_env().images.get(IMAGE).id
    for record in container.values():
        output = next(iter(record["outputs"].values()))
        lineage = json.loads((Path(output["path"]) / "lineage.json").read_text())
        assert lineage["image_digest"] == image


def test_container_steps_write_as_the_caller_and_log_to_the_mounted_mlflow(container, container_out):
    assert {path.stat().st_uid for path in container_out.rglob("*")} == {os.getuid()}
    client = MlflowClient(f"sqlite:///{container_out}/mlflow/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    assert {run.info.run_name for run in client.search_runs(experiments)} == set(STEPS)
