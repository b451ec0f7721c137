"""Fine-tuning with adapters: the step writes a plain model, and beside it what makes it from its base."""

import pytest
import torch
from pydantic import ValidationError

from components.adapter import merge_directories
from components.register.step import ADAPTER, ADAPTER_BASE
from components.sft.config import SftConfig
from components.sft.step import run
from model.data.artifact import payload_sha256
from model.families.opening import load_network
from model.flash.processor import read_json
from model.training.config import LoraConfig, TrainingConfig

LORA = LoraConfig(rank=2, targets=("language", "vision"))


def settings(**changes) -> TrainingConfig:
    base = {"learning_rate": 1e-2, "steps": 3, "batch_size": 4, "threads": 1, "precision": "float32", "lora": LORA}
    return TrainingConfig(**base | changes)


def test_the_model_is_its_base_and_its_adapter(digits, heldout, random_models, context, tmp_path):
    init, output = random_models[0], tmp_path / "model"
    config = SftConfig(training=settings(), heldout_rows=1)
    run(config, rows=digits / "corpus", heldout=heldout, init=init, model=output, context=context)
    assert read_json(output / ADAPTER / ADAPTER_BASE)["sha256"] == payload_sha256(init)
    before, after = load_network(init).state_dict(), load_network(output).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.partition(".")[0] for name in moved} == {"language_model", "vision_tower"}
    assert all(before[name].ndim == 2 for name in moved)
    merge_directories(init, output / ADAPTER, tmp_path / "merged")
    assert payload_sha256(tmp_path / "merged") == payload_sha256(output)


def test_an_adapter_of_random_weights_is_refused():
    with pytest.raises(ValidationError, match=r"training\.lora: adapters of random weights have no base"):
        SftConfig(training=settings(), init="random")
