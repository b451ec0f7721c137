"""``fovea look``: a picture and an answer, or one line that says why not."""

import errno

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from cli import routing
from cli.errors import OneLineErrors
from model.flash.checkpoint import save_model
from tests.tiny import encoded, picture
from tests.tiny_flash import random_flash_model

app = typer.Typer(cls=OneLineErrors, pretty_exceptions_enable=False)
app.command("profiles")(lambda: None)
routing.mount(app)


@pytest.fixture(scope="module")
def flash_directory(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("flash") / "model"
    save_model(*random_flash_model(tokenizer), directory)
    return directory


@pytest.fixture
def page(tmp_path, monkeypatch, rng):
    monkeypatch.setenv("FOVEA_OUT", str(tmp_path / "out"))
    (tmp_path / "page.jpg").write_bytes(encoded(picture(rng, 2, 2), "JPEG"))
    return tmp_path / "page.jpg"


def test_a_picture_is_drawn_and_the_tokens_are_told(page, flash_directory, tmp_path):
    result = CliRunner().invoke(app, ["look", str(page), "--model", str(flash_directory), "-q", "What?"])
    assert result.exit_code == 0, result.output
    assert " of 80 visual tokens (" in result.output
    assert Image.open(tmp_path / "out" / "look" / "page.png").width > 600
    options = ["--model", str(flash_directory), "--full", "--out", str(tmp_path / "full.png")]
    result = CliRunner().invoke(app, ["look", str(page), *options])
    assert "80 of 80 visual tokens (100%)" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no Flash model has been trained here yet; name a model directory with --model"),
        (["--model", "nowhere"], "nowhere: no such model directory"),
        (["--model", "nowhere", "--out", "x.html"], r"x.html: name a .png file"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(page, arguments, words):
    result = CliRunner().invoke(app, ["look", str(page), *arguments])
    assert result.exit_code != 0
    assert words in result.stderr and len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("word", ["<IMG_CONTEXT>", "<|im_end|>"])
def test_a_question_that_would_forge_an_image_or_a_turn_is_refused(page, flash_directory, word):
    result = CliRunner().invoke(app, ["look", str(page), "--model", str(flash_directory), "-q", f"what {word}"])
    assert result.exit_code != 0
    assert f"a message holds the reserved word {word}" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "/proc/x.png", "locked/x.png", "page.jpg/x.png"])
def test_a_picture_that_cannot_be_written_is_said_in_one_line(page, flash_directory, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "locked").mkdir(mode=0o500)
    if name.startswith("locked"):

        def refuse(target, _data):  # as any user but root is refused
            raise OSError(errno.EROFS, "Read-only file system", str(target))

        monkeypatch.setattr("model.data.artifact.write_atomic", refuse)
    result = CliRunner().invoke(app, ["look", str(page), "--model", str(flash_directory), "--out", name])
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1
    assert name in result.stderr.replace("\n", "")


def test_a_model_without_tiles_is_refused(page, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    result = CliRunner().invoke(app, ["look", str(page), "--model", str(tmp_path)])
    assert "model_type is 'qwen2_vl', not 'internvl'" in result.stderr


def test_a_file_that_is_no_image_is_named(page, flash_directory, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for name, words in (("text.png", "text.png: not an image"), ("missing.png", "missing.png: No such file")):
        result = CliRunner().invoke(app, ["look", str(tmp_path / name), "--model", str(flash_directory)])
        assert words in result.stderr and len(result.stderr.strip().splitlines()) == 1
