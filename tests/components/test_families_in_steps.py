"""The line's steps on a Qwen-VL: taken as released, fine-tuned on packs with an adapter, evaluated."""

import json

import numpy as np
import pytest
import torch

from components.context import StepContext
from components.evaluate.config import EvaluateConfig
from components.evaluate.step import run as evaluate
from components.pretrain.config import PretrainConfig
from components.pretrain.step import run as pretrain
from components.sft.config import SftConfig
from components.sft.step import run as sft
from model.data.errors import InputError
from model.data.shards import write_dataset
from model.families.opening import load_network
from model.training.config import LoraConfig, PackingConfig, TrainingConfig
from tests.tiny_qwen import mixed_row, save_stock

TRAINING = TrainingConfig(
    learning_rate=1e-3,
    steps=2,
    batch_size=2,
    packing=PackingConfig(max_tokens=400, max_units=200, lookahead=4),
    lora=LoraConfig(rank=2),
    precision="float32",
    threads=1,
)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    directory = tmp_path_factory.mktemp("released")
    save_stock("qwen2_5_vl", directory)
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Text, images and videos."""
    rng = np.random.default_rng(0)
    directory = tmp_path_factory.mktemp("rows") / "rows"
    write_dataset(directory, [mixed_row(f"r{i}", rng, ["", "i", "v"][i % 3], "yes") for i in range(6)])
    return directory


def test_a_released_checkpoint_goes_through_the_line(released, data, tmp_path):
    context = StepContext(state_dir=tmp_path / "state")
    taken, tuned, evaluation = tmp_path / "taken", tmp_path / "tuned", tmp_path / "evaluation"
    given = {"rows": data, "heldout": data, "context": context}
    pretrain(PretrainConfig(init_from=released, heldout_rows=1), **given, tokenizer=released, model=taken)
    before, same = load_network(released).state_dict(), load_network(taken).state_dict()
    assert all(torch.equal(before[name], same[name]) for name in before)
    result = sft(SftConfig(training=TRAINING, heldout_rows=1), **given, init=taken, model=tuned)
    assert result.numbers["steps"] == 2
    assert (tuned / "adapter" / "adapter_model.safetensors").is_file()
    after = load_network(tuned).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any("visual" in name for name in moved)
    evaluate(
        EvaluateConfig(batch_size=4, max_new_tokens=3),
        model=tuned,
        heldout=data,
        evaluation=evaluation,
        context=context,
    )
    assert json.loads((evaluation / "scores.json").read_text())["families"].keys() == {"read"}


def test_random_weights_are_drawn_for_internvl_only(released, data, tmp_path):
    config = SftConfig(training=TRAINING.model_copy(update={"lora": None}), init="random")
    with pytest.raises(InputError, match=r"sft\.init: random weights are drawn for InternVL only"):
        sft(config, rows=data, heldout=data, init=released, model=tmp_path / "m", context=StepContext(tmp_path))


def test_a_row_whose_picture_is_not_of_its_stated_size_is_refused_by_name(released, tmp_path):
    """Packs are planned by what rows state, before a pixel is decoded."""
    row = mixed_row("odd", np.random.default_rng(0), "i", "yes")
    row["media"][0]["width"] = 900
    write_dataset(tmp_path / "rows", [row])
    config = SftConfig(training=TRAINING, heldout_rows=1)
    context = StepContext(state_dir=tmp_path / "state")
    with pytest.raises(InputError, match=r"row odd: its media give \d+ tokens .* stated sizes"):
        sft(
            config,
            rows=tmp_path / "rows",
            heldout=tmp_path / "rows",
            init=released,
            model=tmp_path / "m",
            context=context,
        )
