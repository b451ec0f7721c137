"""``fovea convert``: what it says, what it writes, what it refuses."""

import json

import pytest
from typer.testing import CliRunner

from cli.main import app
from model.data.artifact import payload_sha256


def fovea(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def test_a_model_goes_to_the_other_layout_and_back(tiny_directory, tmp_path):
    there = fovea(tiny_directory, tmp_path / "original")
    assert there.exit_code == 0, there.output
    assert "in the original layout (from huggingface)" in there.stdout
    assert json.loads((tmp_path / "original" / "config.json").read_text())["model_type"] == "internvl_chat"
    assert fovea(tmp_path / "original", tmp_path / "back").exit_code == 0
    assert payload_sha256(tmp_path / "back") == payload_sha256(tiny_directory)


def test_a_layout_can_be_named_and_written_anew(tiny_directory, tmp_path):
    assert fovea(tiny_directory, tmp_path / "copy", "--to", "huggingface").exit_code == 0
    assert payload_sha256(tmp_path / "copy") == payload_sha256(tiny_directory)


@pytest.mark.parametrize(
    ("model_type", "words"),
    [(None, "config.json: no such file"), ("qwen2_5_vl", "model_type is 'qwen2_5_vl', not 'internvl'")],
)
def test_what_is_no_internvl_is_refused_in_one_line(tmp_path, model_type, words):
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    result = fovea(tmp_path, tmp_path / "out")
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
