"""``fovea chat --url``: what an endpoint in the OpenAI dialect is sent, and what becomes of its answers."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from typer.testing import CliRunner

from cli import chat_model
from cli.main import app
from model.critic.critic import SolutionScore
from model.data.thinking import THINKING_SYSTEM_PROMPT
from tests.tiny import encoded, picture


class Recorder(BaseHTTPRequestHandler):
    """Answers "seed N" and remembers what was asked."""

    asked: list[dict] = []
    models = [{"id": "their-model", "object": "model", "created": 0, "owned_by": "them"}]

    def do_GET(self):
        self.reply({"object": "list", "data": self.models})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(request)
        text = f"seed {request.get('seed')}"
        if request.get("stream"):
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
            self.reply(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n", "text/event-stream")
            return
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self.reply({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})

    def reply(self, body, media_type="application/json"):
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def url(monkeypatch) -> Iterator[str]:
    monkeypatch.setattr(Recorder, "asked", [])
    server = HTTPServer(("127.0.0.1", 0), Recorder)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def fovea(*words, input: str | None = None):
    done = CliRunner().invoke(app, ["chat", *map(str, words)], input=input)
    assert done.exit_code == 0, done.output
    return done


def test_thinking_sends_the_published_prompt_and_sampling(url, tmp_path, rng):
    image = tmp_path / "digits.png"
    image.write_bytes(encoded(picture(rng)))
    assert fovea(image, "How many?", "--url", url, "--think", "--seed", 5).stdout == "seed 5\n"
    (request,) = Recorder.asked
    system, question = request["messages"]
    assert system == {"role": "system", "content": THINKING_SYSTEM_PROMPT}
    assert [part["type"] for part in question["content"]] == ["image_url", "text"]
    assert question["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert (request["model"], request["temperature"], request["top_p"]) == ("their-model", 0.6, 0.95)


def test_a_plain_question_asks_for_no_sampling_and_earlier_turns_go_with_the_next(url):
    done = fovea("--url", url, input="One?\nTwo?\n")
    assert done.stdout.count("seed None\n") == 2
    first, second = Recorder.asked
    assert "temperature" not in first and "seed" not in first
    assert [turn["role"] for turn in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == "seed None"


def test_the_best_of_several_of_an_endpoint_is_chosen_here(url, tmp_path, monkeypatch):
    class SecondIsBest:
        def scores(self, row, solutions):
            assert row["messages"][0]["content"] == "How many?" and solutions == ["seed 7", "seed 8", "seed 9"]
            return [SolutionScore(score, (score,)) for score in (0.2, 0.9, 0.9)]

    monkeypatch.setattr(chat_model, "load_critic", lambda directory, **_: SecondIsBest())
    done = fovea("How many?", "--url", url, "--best-of", 3, "--critic", tmp_path, "--seed", 7)
    assert done.stdout == "seed 8\n"
    assert done.stderr == "fovea: answer 2 of 3: 0.900 (the mean over 1 steps)\n"


def test_a_critic_that_does_not_open_is_found_before_anything_is_asked(url, tmp_path):
    options = ["--url", url, "--best-of", "3", "--critic", str(tmp_path / "nowhere")]
    done = CliRunner().invoke(app, ["chat", "How many?", *options])
    assert done.exit_code == 2 and "nowhere" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert Recorder.asked == []


def test_an_endpoint_without_models_is_named(url, monkeypatch):
    monkeypatch.setattr(Recorder, "models", [])
    done = CliRunner().invoke(app, ["chat", "How many?", "--url", url])
    assert done.exit_code == 2
    assert done.stderr == f"fovea: error: {url}: lists no model at /v1/models\n"
