"""What tests share: a small random network and its tokenizer."""

import os
from pathlib import Path

import numpy as np
import pytest

# Two workers on two cores: more threads than that only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_LONG = ("slow", "vllm", "docker", "demo")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests of a file share a worker, and with it their fixtures, unless they name a group of their own."""
    for item in items:
        if any(map(item.get_closest_marker, _LONG)) and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.name))


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level tokenizer without merges, with the special tokens of InternVL."""
    from tests.tiny import byte_tokenizer

    return byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tokenizer):
    """(model, processor): a random network whose greedy answers are not constant."""
    from tests.tiny import random_model

    return random_model(tokenizer)


@pytest.fixture(scope="session")
def tiny_directory(tiny_model, tmp_path_factory) -> Path:
    """The same network as a model directory."""
    from model.flash.checkpoint import save_model

    directory = tmp_path_factory.mktemp("model") / "tiny"
    save_model(*tiny_model, directory)
    return directory


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def micro_line(tmp_path_factory):
    """A clean clone in which ``fovea run`` has finished the profile ``micro``; ``record`` is what it printed."""
    from tests.repository_copy import RepositoryCopy

    copy = RepositoryCopy.make(tmp_path_factory.mktemp("micro") / "fovea", "micro")
    copy.record = copy.fovea("run")
    return copy
