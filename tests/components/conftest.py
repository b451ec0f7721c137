"""A real but tiny world for the steps that answer rows: held-out digits, a tokenizer, two random models."""

from pathlib import Path

import pytest

from components.collect.config import CollectConfig, DigitsConfig
from components.collect.step import run as collect
from components.context import StepContext
from model.data.schema import Row
from model.data.shards import open_dataset

ROWS_PER_FAMILY = 4


@pytest.fixture
def context(tmp_path) -> StepContext:
    """Surroundings with an empty state directory."""
    return StepContext(state_dir=tmp_path / "state")


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """Outputs of collect: ``corpus``, ``heldout``, ``tokenizer``."""
    directory = tmp_path_factory.mktemp("digits")
    config = CollectConfig(
        digits=DigitsConfig(
            canvas=28, digits=(1, 2), scale=(1.0, 1.75), transcriptions=8, questions=8, heldout=ROWS_PER_FAMILY
        ),
        vocabulary=300,
    )
    outputs = {name: directory / name for name in ("corpus", "heldout", "tokenizer")}
    collect(config, **outputs, context=StepContext(state_dir=directory / "state"))
    return directory


@pytest.fixture(scope="session")
def heldout(digits) -> Path:
    """The held-out dataset."""
    return digits / "heldout"


@pytest.fixture(scope="session")
def heldout_rows(heldout) -> list[Row]:
    """Its rows."""
    return list(open_dataset(heldout).rows())


@pytest.fixture(scope="session")
def random_models(digits, tmp_path_factory) -> tuple[Path, Path]:
    """Directories of two models of one shape, whose different random weights give different answers."""
    import torch

    from model.flash.build import build_model
    from model.flash.checkpoint import save_model
    from model.flash.config import LanguageConfig, ModelConfig, VisionConfig
    from model.flash.processor import load_tokenizer

    torch.set_num_threads(1)
    shape = ModelConfig(
        vision=VisionConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=28,
            patch_size=7,
        ),
        language=LanguageConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            intermediate_size=32,
            max_position_embeddings=512,
        ),
        max_tiles=1,
    )
    directory = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(digits / "tokenizer")
    for seed in (0, 1):
        model, processor = build_model(shape, tokenizer, seed=seed)
        # Fresh weights are so small that every answer repeats the prompt's last token; larger ones look at the image.
        with torch.no_grad():
            for name, weights in model.named_parameters():
                if weights.ndim == 2 and "embed_tokens" not in name:
                    weights.mul_(20)
        save_model(model, processor, directory / str(seed))
    return directory / "0", directory / "1"
