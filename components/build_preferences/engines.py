"""What samples the answers: the model itself, or a vLLM server that serves it."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from components.build_preferences.config import BuildPreferencesConfig
from model.data.errors import InputError
from model.families.interface import Network, Processor
from model.families.opening import family_of, load_network, load_processor
from model.flash.processor import read_json
from model.training.loop import make_deterministic
from model.training.policy_config import SamplingServer
from model.training.rollout import NetworkSampler, RolloutEngine
from model.training.vllm_rollout import VllmSampler, VllmServer


class Opened(NamedTuple):
    """An engine, the processor that measures prompts, and the model's context in tokens."""

    engine: RolloutEngine
    processor: Processor
    context: int


class FixedWeights:
    """A server's weights while preferences are built: nothing trains."""

    def send(self, network: Network, server: VllmServer) -> None:
        """Never called.

        Raises:
            RuntimeError: it was.
        """
        raise RuntimeError("preferences are built with the weights that the server has")


@contextmanager
def open_engine(config: BuildPreferencesConfig, model: Path) -> Iterator[Opened]:
    """The engine that the configuration names, for a model directory of any family; a server's connections are closed
    at the end.

    Raises:
        InputError: the directory is missing, incomplete or broken.
    """
    make_deterministic(config.threads)
    family_of(model)  # says first and best what is wrong with a directory
    processor = load_processor(model)
    if config.server is not None:
        with closing(VllmServer(config.server.url, config.server.timeout_s)) as connected:
            yield _served(config.server, connected, model, processor)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = load_network(model, dtype=getattr(torch, config.precision), device=device)
    engine = NetworkSampler(network, processor, config.decode_tokens)
    yield Opened(engine, processor, network.config.text_config.max_position_embeddings)


def _served(server: SamplingServer, connected: VllmServer, model: Path, processor: Processor) -> Opened:
    text = text_settings(model)
    engine = VllmSampler(
        connected,
        processor,
        text["vocab_size"],
        text["max_position_embeddings"],
        FixedWeights(),
        model=server.model,
        concurrency=server.concurrency,
    )
    return Opened(engine, processor, text["max_position_embeddings"])


def text_settings(model: Path) -> dict[str, Any]:
    """The language model's part of ``config.json``: ``text_config``, ``llm_config`` of the original InternVL layout, or
    all of it, as Qwen2-VL was published.

    Raises:
        InputError: it does not say the vocabulary or the context.
    """
    config = read_json(model / "config.json")
    text = config.get("text_config") or config.get("llm_config") or config
    for name in ("vocab_size", "max_position_embeddings"):
        if not isinstance(text.get(name), int):
            raise InputError(f"{model / 'config.json'}: the language model has no {name}")
    return text
