"""One tiny random directory of each Qwen-VL, opened by us and by transformers."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.tiny_qwen import GENERATIONS, save_stock


class Qwen(NamedTuple):
    """A directory that transformers wrote, and what opens it: our network and processor, and transformers' network."""

    generation: str
    directory: Path
    network: Any
    processor: Any
    stock: Any

    @property
    def deep(self) -> bool:
        """The generation has a deep stack."""
        return self.generation.startswith("qwen3")


def open_qwen(generation: str, directory: Path, **options: Any) -> Qwen:
    """Write a directory with transformers and open it."""
    import torch

    from model.families.opening import load_network, load_processor

    torch.set_num_threads(1)
    stock = save_stock(generation, directory, **options)
    return Qwen(generation, directory, load_network(directory), load_processor(directory), stock)


@pytest.fixture(scope="session", params=GENERATIONS)
def qwen(request, tmp_path_factory):
    return open_qwen(request.param, tmp_path_factory.mktemp(request.param))
