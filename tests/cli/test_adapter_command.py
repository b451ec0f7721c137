"""``fovea adapter``: what a training step folds, the command folds to the same bytes, and takes out again."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from cli.main import app
from components.adapter import fold_adapter
from model.data.artifact import payload_sha256
from model.families.opening import load_network, load_processor, save_network
from model.training.config import LoraConfig
from model.training.lora import add_lora
from tests.tiny import byte_tokenizer, random_model

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Path:
    """``base``, and ``trained`` as a step writes it: merged weights with their adapter beside them."""
    directory = tmp_path_factory.mktemp("line")
    save_network(*random_model(byte_tokenizer()), directory / "base")
    network = load_network(directory / "base")
    add_lora(network, LoraConfig(targets=("language", "projector"), dropout=0.1))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
            else:
                parameter.copy_(parameter.bfloat16())  # as DeepSpeed leaves weights that did not train
    fold_adapter(network, directory / "trained", directory / "base")
    save_network(network, load_processor(directory / "base"), directory / "trained")
    return directory


def fovea(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["adapter", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def complaint(*arguments: object) -> str:
    """The one line that the command says."""
    result = CliRunner().invoke(app, ["adapter", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0].removeprefix("fovea: error: ")


def test_merging_gives_the_model_that_the_step_wrote(line, tmp_path):
    said = fovea("merge", line / "base", line / "trained/adapter", tmp_path / "merged")
    assert said.startswith(f"{tmp_path / 'merged'}: ")
    assert payload_sha256(tmp_path / "merged") == payload_sha256(line / "trained")


def test_unmerging_gives_the_base_again_but_for_rounding(line, tmp_path):
    fovea("unmerge", line / "trained", tmp_path / "again")
    base, merged, again = (load_network(d).state_dict() for d in (line / "base", line / "trained", tmp_path / "again"))
    assert any(not torch.equal(merged[name], base[name]) for name in base)
    for name, tensor in again.items():
        assert ((tensor - base[name]).abs() <= 2**-24 * (merged[name].abs() + tensor.abs())).all()
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == sorted(p.name for p in (line / "base").iterdir())


def test_a_bfloat16_base_stays_bfloat16(line, tmp_path):
    save_network(load_network(line / "base", dtype=torch.bfloat16), load_processor(line / "base"), tmp_path / "half")
    shutil.copytree(line / "trained/adapter", tmp_path / "adapter")
    (tmp_path / "adapter/base.json").write_text(f'{{"sha256": "{payload_sha256(tmp_path / "half")}"}}')
    fovea("merge", tmp_path / "half", tmp_path / "adapter", tmp_path / "merged")
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype="auto")
    assert {p.dtype for p in stock.parameters()} == {torch.bfloat16}


def test_transformers_opens_the_merged_model_and_leaves_its_adapter_alone(line):
    stock = AutoModelForImageTextToText.from_pretrained(line / "trained", dtype=torch.float32)
    assert not any("lora_" in name for name, _ in stock.named_modules())
    merged = load_network(line / "trained").language_model.model.state_dict()
    theirs = stock.model.language_model.state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in merged.items())


def test_the_adapter_of_another_base_is_refused_and_nothing_is_written(line, tmp_path):
    said = complaint("merge", line / "trained", line / "trained/adapter", tmp_path / "merged")
    assert "the adapter is of the base" in said
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_or_in_the_way_is_named(line, tmp_path):
    assert "no adapter folder in it" in complaint("unmerge", line / "base", tmp_path / "again")
    assert "exists" in complaint("unmerge", line / "trained", tmp_path)
    assert "no such" in complaint("merge", tmp_path / "none", line / "trained/adapter", tmp_path / "merged")
    assert "no such file" in complaint("merge", line / "base", tmp_path / "none", tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []
