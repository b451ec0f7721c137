"""``fovea chat`` with a model directory: one question or many, with thoughts, the best of several by a critic."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cli import chat_model
from cli.chat import Words, read_words
from cli.chat_model import choose
from cli.conversation import Conversation, Manner, read_picture
from cli.main import app
from model.critic.critic import Critic, best_of
from model.data.errors import InputError
from model.data.thinking import thinking_row
from model.families.generation import answer_rows
from model.training.rollout import NetworkSampler, Query
from model.training.sampling import Sampling
from tests.tiny import encoded, picture

QUESTION = "How many digits?"


def fovea(*words, input: str | None = None):
    return CliRunner().invoke(app, ["chat", *map(str, words)], input=input)


def complaint(*words) -> str:
    done = fovea(*words)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output
    return done.stderr


@pytest.fixture
def image(tmp_path, rng) -> Path:
    path = tmp_path / "digits.png"
    path.write_bytes(encoded(picture(rng, 2)))
    return path


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    """A place where nothing was run; models run in float32 wherever they run."""
    monkeypatch.setenv("FOVEA_OUT", str(tmp_path / "out"))
    monkeypatch.setattr(chat_model, "_placement", lambda: {"dtype": torch.float32, "device": "cpu"})


def test_a_model_directory_answers_as_evaluation_does(tiny_directory, tiny_model, image):
    (expected,) = answer_rows(*tiny_model, [Conversation([read_picture(image)]).row(QUESTION)], max_new_tokens=12)
    done = fovea(tiny_directory, "--image", image, QUESTION, "--max-tokens", 12)
    assert done.exit_code == 0, done.output
    assert done.stdout.replace("\ufffd", "") == f"{expected}\n".replace("\ufffd", "")
    assert fovea(tiny_directory, image, QUESTION, "--max-tokens", 12).stdout == done.stdout


def test_questions_are_read_line_by_line_and_earlier_turns_are_remembered(tiny_directory, tiny_model):
    conversation = Conversation([])
    answers = []
    for question in ("One?", "Two?"):
        (answer,) = answer_rows(*tiny_model, [conversation.row(question)], max_new_tokens=5)
        conversation.answered(question, answer)
        answers.append(answer)
    done = fovea(tiny_directory, "--max-tokens", 5, input="One?\n\n<image>\nTwo?\n")
    assert done.exit_code == 0, done.output
    assert "fovea: error: 1 <image> placeholders for 0 media of kind image\n" in done.stderr
    alone = Conversation([]).row("Two?")
    assert answers[1] != answer_rows(*tiny_model, [alone], max_new_tokens=5)[0]
    for answer in answers:
        assert answer.strip("\ufffd \n") in done.stdout


def test_thinking_samples_with_the_published_prompt(tiny_directory, tiny_model, image):
    row = Conversation([read_picture(image)]).row(QUESTION, think=True)
    assert row == thinking_row(Conversation([read_picture(image)]).row(QUESTION))
    sampler = NetworkSampler(*tiny_model)
    drawn = [sampler.sample([Query(row)], 1, Sampling(0.6, 0.95, max_new_tokens=8), seed)[0][0] for seed in (3, 4)]
    seen = [fovea(tiny_directory, image, QUESTION, "--think", "--seed", s, "--max-tokens", 8).stdout for s in (3, 4)]
    assert seen == [f"{response.text}\n" for response in drawn]
    assert seen[0] != seen[1]


def test_the_best_of_several_is_the_one_its_critic_scores_highest(tiny_directory, tiny_model, image):
    row = Conversation([read_picture(image)]).row(QUESTION)
    (group,) = NetworkSampler(*tiny_model).sample([Query(row)], 4, Sampling(0.6, 0.95, max_new_tokens=8), 0)
    texts = [response.text for response in group]
    scores = [score.score for score in Critic(*tiny_model).scores(row, texts)]
    done = fovea(tiny_directory, image, QUESTION, "--best-of", 4, "--critic", tiny_directory, "--max-tokens", 8)
    assert done.exit_code == 0, done.output
    best = best_of(scores)
    assert len(set(scores)) > 1 and done.stdout == f"{texts[best]}\n"
    assert done.stderr.startswith(f"fovea: answer {best + 1} of 4: {scores[best]:.3f} (the mean over")


def test_an_answer_that_its_critic_cannot_judge_is_not_chosen_and_said_why(tiny_model, image, capsys):
    row = Conversation([read_picture(image)]).row(QUESTION)
    assert choose(Critic(*tiny_model), row, ["so " * 1000, "3", ""]) == "3"
    long, empty, chosen = capsys.readouterr().err.splitlines()
    assert long.startswith("fovea: answer 1 of 3 cannot be judged: it has ") and "context is 2048" in long
    assert empty == "fovea: answer 3 of 3 cannot be judged: it is empty"
    assert chosen.startswith("fovea: answer 2 of 3: ")
    with pytest.raises(InputError, match="the critic can judge none of 2 answers"):
        choose(Critic(*tiny_model), row, ["", " "])


def test_the_best_of_one_is_itself_and_needs_no_critic(tiny_directory, tmp_path):
    plain = fovea(tiny_directory, QUESTION, "--max-tokens", 5)
    one = fovea(tiny_directory, QUESTION, "--max-tokens", 5, "--best-of", 1, "--critic", tmp_path / "nowhere")
    assert one.exit_code == 0 and one.stdout == plain.stdout


def test_a_critic_judges_the_last_question_of_a_conversation(image):
    conversation = Conversation([read_picture(image)])
    conversation.answered("One?", "1")
    row = conversation.row("Two?", alone=True)
    assert [message["content"] for message in row["messages"]] == ["<image>\nTwo?", "?"]


def test_mistakes_are_one_line(tiny_directory, tmp_path, image):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    text = tmp_path / "notes.txt"
    text.write_text("x")
    assert "--best-of 8: somebody has to choose; name a critic" in complaint(tiny_directory, QUESTION, "--best-of", 8)
    assert "--url: asks an endpoint" in complaint(tiny_directory, QUESTION, "--url", "http://127.0.0.1:9")
    assert "broken.png: cannot identify image file" in complaint(tiny_directory, broken, QUESTION)
    assert "missing.png: No such file or directory" in complaint(tiny_directory, "missing.png", QUESTION)
    assert "notes.txt: not an image" in complaint(tiny_directory, text, QUESTION)
    assert "config.json: no such file" in complaint(tmp_path / "empty", QUESTION)
    assert "no such model directory" in complaint(
        tiny_directory, QUESTION, "--best-of", 2, "--critic", tmp_path / "nowhere"
    )
    assert "reserved word <|im_end|>" in complaint(tiny_directory, "<|im_end|>")
    assert "is not being served; start it with `fovea serve`, or name a model directory" in complaint(QUESTION)
    assert "nobody answers" in complaint(QUESTION, "--url", "http://127.0.0.1:9")


def test_the_words_of_the_command_line_are_told_apart(tmp_path):
    model, image = tmp_path / "model", tmp_path / "a.png"
    assert read_words([]) == Words(None, [], None)
    assert read_words(["how many?"]) == Words(None, [], "how many?")
    assert read_words([str(image), "how many?"]) == Words(None, [image], "how many?")
    assert read_words([str(image)]) == Words(None, [image], None)
    model.mkdir()
    assert read_words([str(model)]) == Words(model, [], None)
    assert read_words([str(model), str(image), str(image)]) == Words(model, [image, image], None)
    assert read_words(["x" * 5000]) == Words(None, [], "x" * 5000)


def test_whoever_is_not_being_served_is_asked_as_the_champion(tiny_directory, monkeypatch):
    from components import tracking
    from components.context import RegisteredModel

    class Registry:
        def __init__(self, uri):
            self.uri = uri

        def by_alias(self, name, alias):
            return RegisteredModel(name, 3, tiny_directory.as_uri(), "0" * 64) if alias == "champion" else None

    monkeypatch.setattr(tracking, "MlflowRegistry", Registry)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = fovea(QUESTION, "--max-tokens", 5)
    assert done.exit_code == 0, done.output
    assert done.stderr == "fovea: fovea is not being served; asking its champion, version 3\n"
    assert done.stdout == fovea(tiny_directory, QUESTION, "--max-tokens", 5).stdout


def test_a_mistake_is_found_before_torch_is_imported(tmp_path):
    script = (
        "import sys; from typer.testing import CliRunner; from cli.main import app\n"
        "CliRunner().invoke(app, ['chat', 'missing.png', 'what?'])\n"
        "CliRunner().invoke(app, ['chat', 'what?', '--best-of', '3'])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_a_manner_samples_when_it_thinks_or_chooses():
    assert [Manner(think, best, 9, 0).sampled for think in (False, True) for best in (1, 2)] == [
        False,
        True,
        True,
        True,
    ]
