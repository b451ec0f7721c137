"""``fovea chat`` and ``fovea stop`` from the terminal; ``fovea serve`` where it refuses."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli import chat, serve
from model.data.errors import InputError
from tests.serving.requests import png

pytestmark = pytest.mark.xdist_group("serving")
app = typer.Typer()
for command in (serve.serve, serve.stop, chat.chat):
    app.command()(command)


def fovea(*words: str):
    return CliRunner().invoke(app, list(words))


@pytest.fixture
def here(served, monkeypatch) -> Path:
    """The directory whose state file names the running servers."""
    out = Path(served.processes[0].log).parents[2]
    monkeypatch.setenv("FOVEA_OUT", str(out))
    return out


@pytest.fixture
def nowhere(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FOVEA_OUT", str(tmp_path))


def test_chat_answers_a_question_about_an_image(here, served, tmp_path):
    image = tmp_path / "digits.png"
    image.write_bytes(png())
    done = fovea("chat", str(image), "how many digits?", "--max-tokens", "5")
    assert done.exit_code == 0, done.output
    assert (
        fovea("chat", str(image), "how many digits?", "--max-tokens", "5", "--url", served.endpoint).output
        == done.output
    )
    assert done.output.strip()


def test_chat_shows_the_servers_own_message(here, tmp_path):
    image = tmp_path / "broken.png"
    image.write_bytes(b"no image")
    done = fovea("chat", str(image), "what?")
    assert isinstance(done.exception, InputError) and ": image 1: " in str(done.exception)


def test_chat_names_a_missing_image(here):
    assert "missing.png: No such file" in str(fovea("chat", "missing.png", "what?").exception)


def test_chat_thinks_with_the_served_model_and_leaves_choosing_to_a_directory(here, tmp_path):
    plain, thinking = (fovea("chat", "how many?", "--max-tokens", "5", *think) for think in ((), ("--think",)))
    assert thinking.exit_code == 0, thinking.output
    assert thinking.output != plain.output
    chosen = fovea("chat", "how many?", "--best-of", "2", "--critic", str(tmp_path))
    assert "decode greedily; name the model's directory" in str(chosen.exception)


def test_a_second_serve_names_the_first(here, tiny_directory, served):
    assert f"being served at {served.endpoint}" in str(fovea("serve", str(tiny_directory)).exception)


def test_without_servers_every_command_says_so(nowhere):
    assert "start it with `fovea serve`" in str(fovea("chat", "hello").exception)
    assert "nothing has been deployed" in str(fovea("serve").exception)
    assert fovea("stop").output.strip() == "nothing is being served"
    assert "other is not being served" in str(fovea("stop", "other").exception)
    assert "nobody answers" in str(fovea("chat", "hello", "--url", "http://127.0.0.1:9").exception)
