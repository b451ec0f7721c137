"""What is sent to a vLLM server, without one: messages, seeds, refusals, and the order of a transfer over NCCL."""

import os
import signal
import time
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from threading import Event, Thread, Timer

import numpy as np
import pytest
import torch

from model.data.errors import InputError
from model.training.rollout import Query
from model.training.sampling import Sampling
from model.training.stopping import Interrupted, Stopped, watch
from model.training.vllm_rollout import VllmSampler, VllmServer, conversation, request_seed
from model.training.weight_transfer import NcclTransfer
from tests.tiny import picture, question_row


def test_images_stand_where_their_placeholders_stood():
    rng = np.random.default_rng(0)
    row = question_row("r", [picture(rng), picture(rng)], "a", question="Which?")
    row["messages"][0]["content"] = "<image>\nand\n<image>\nWhich?"
    first, text, second, question = conversation(Query(row))[0]["content"]
    assert first["type"] == second["type"] == "image_url"
    assert first["image_url"]["url"].startswith("data:image;base64,") and first != second
    assert (text, question) == ({"type": "text", "text": "and\n"}, {"type": "text", "text": "Which?"})


def test_a_prefix_is_the_beginning_of_the_answer_and_the_rows_own_answer_is_never_sent():
    row = question_row("r", [], "the answer", question="Why?")
    sent = conversation(Query(row, prefix="Because "))
    assert sent == [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because "}]


def test_a_video_is_refused_with_the_rows_name():
    row = question_row("r", [], "a")
    row["media"] = [{"kind": "video", "bytes": b"", "uri": None}]
    with pytest.raises(InputError, match="row r: a vLLM server is sent stored images only"):
        conversation(Query(row))


def test_every_query_has_a_seed_of_its_own():
    rows = [question_row(f"r{i}", [], "a") for i in range(50)]
    seeds = {request_seed(seed, Query(row, prefix)) for row in rows for seed in (0, 1) for prefix in ("", "I")}
    assert len(seeds) == 200 and all(0 <= seed < 2**31 for seed in seeds)


def test_a_server_that_is_not_there_is_one_line():
    with pytest.raises(InputError, match=r"vLLM at http://127.0.0.1:9: /pause: ConnectError"):
        VllmServer("http://127.0.0.1:9").post("/pause")


class Replies:
    """A server that gives one reply to whatever it is asked."""

    url = "http://server"

    def __init__(self, choices, prompt):
        self._reply = {"choices": choices, "prompt_token_ids": prompt}

    def post(self, path, body):
        self.body = body
        return self._reply

    def give_up(self):
        self.given_up = True


def choice(index, ids, values):
    content = {"content": [{"logprob": value} for value in values]}
    return {"index": index, "token_ids": ids, "logprobs": content, "finish_reason": "stop"}


@pytest.mark.parametrize(
    "choices",
    [
        [choice(0, [5, 6], [-1.0, -1.0])],
        [choice(0, [5, 6], [-1.0, -1.0]), choice(1, [5, 6], [-1.0])],
        [choice(0, [5, 6], [-1.0, -1.0]), {"index": 1, "token_ids": [5], "logprobs": None, "finish_reason": "stop"}],
        [choice(0, [5, 6], [-1.0, -1.0]), {"index": 1, "text": "5", "finish_reason": "stop"}],
    ],
    ids=["too few answers", "too few log-probabilities", "no log-probabilities", "no token ids"],
)
def test_a_reply_that_lacks_something_names_the_row(tiny_model, choices):
    processor, query = tiny_model[1], Query(question_row("r", [], "a"))
    server = Replies(choices, processor.question(query.row).input_ids)
    engine = VllmSampler(server, processor, 300, 2048, None, model="m")
    with pytest.raises(InputError, match="row r: vLLM at http://server does not give 2 answers"):
        engine.sample([query], 2, Sampling(), 0)


def test_an_answer_is_asked_for_as_far_as_the_context_reaches(tiny_model):
    processor, query = tiny_model[1], Query(question_row("r", [], "a"))
    prompt = processor.question(query.row).input_ids
    server = Replies([choice(0, [5], [-1.0])], prompt)
    for room, asked in ((3, 3), (2000, 1024)):
        engine = VllmSampler(server, processor, 300, len(prompt) + room, None, model="m")
        engine.sample([query], 1, Sampling(max_new_tokens=1024), 0)
        assert server.body["max_completion_tokens"] == asked
    engine = VllmSampler(server, processor, 300, len(prompt), None, model="m")
    with pytest.raises(InputError, match=f"row r: prompt has {len(prompt)} tokens; the model's context is"):
        engine.sample([query], 1, Sampling(), 0)


def test_a_server_that_is_something_else_is_one_line():
    class Page(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>\nwelcome")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(InputError, match="/pause: the reply is not JSON: <html> welcome"):
            VllmServer(f"http://127.0.0.1:{server.server_port}").post("/pause")


@pytest.fixture
def silent():
    """A server that reads a request and never answers, and an event: it was left alone."""
    left = Event()

    class Silent(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            if not self.rfile.read(1):
                left.set()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield VllmServer(f"http://127.0.0.1:{server.server_port}"), left
        server.shutdown()


def seconds_of(work, expected, number=None):
    """How long ``work`` takes to fail; after half a second this process gets the signal ``number``."""
    started = time.monotonic()
    with pytest.raises(expected):
        if number is not None:
            Timer(0.5, os.kill, (os.getpid(), number)).start()
        work()
    return time.monotonic() - started


def seconds_of_sampling(engine, queries, expected, number=None):
    return seconds_of(lambda: engine.sample(queries, 2, Sampling(), 0), expected, number)


QUERIES = [Query(question_row(f"r{number}", [], "a")) for number in range(4)]


@pytest.mark.timeout(30)
def test_sigterm_in_training_does_not_wait_for_a_server(tiny_model, silent):
    server, left = silent
    engine = VllmSampler(server, tiny_model[1], 300, 2048, None, model="m", concurrency=2)
    with pytest.raises(Stopped), watch():
        assert seconds_of_sampling(engine, QUERIES, Interrupted, signal.SIGTERM) < 5
        raise Stopped
    assert left.wait(5), "it can give its work up"


@pytest.mark.timeout(30)
def test_an_interrupt_or_a_row_that_fails_does_not_wait_for_a_server(tiny_model, silent):
    engine = VllmSampler(silent[0], tiny_model[1], 300, 2048, None, model="m", concurrency=4)
    assert seconds_of_sampling(engine, QUERIES, KeyboardInterrupt, signal.SIGINT) < 5
    engine.server = VllmServer(silent[0].url)
    broken = Query(question_row("r", [], "a"), prefix="<|im_end|>")
    assert seconds_of_sampling(engine, [broken, *QUERIES], InputError) < 5


@pytest.mark.timeout(30)
def test_sigterm_while_weights_are_sent_does_not_wait_for_a_server(tiny_model, silent):
    engine = VllmSampler(silent[0], tiny_model[1], 300, 2048, None, model="m")
    with pytest.raises(Stopped), watch():
        assert seconds_of(lambda: engine.refresh(tiny_model[0]), Interrupted, signal.SIGTERM) < 5
        raise Stopped


@pytest.mark.timeout(30)
def test_weights_that_are_sent_have_no_gradient_whatever_the_thread(tiny_model):
    seen = []

    class Taking:
        post = give_up = lambda *_args, **_more: None

    class Transfer:
        def send(self, network, server):
            seen.append((network.head.weight * 2).requires_grad)

    with torch.no_grad():
        VllmSampler(Taking(), tiny_model[1], 300, 2048, Transfer(), model="m").refresh(tiny_model[0])
    assert seen == [False]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("after", [0.0, 1.5])
@pytest.mark.parametrize("refused", ["/init_weight_transfer_engine", "/update_weights"])
def test_no_collective_operation_waits_for_a_server_that_refuses(tiny_model, monkeypatch, refused, after):
    class Refusing:
        def get(self, path):
            return {"world_size": 1}

        def post(self, path, body=None):
            if path == refused:
                time.sleep(after)
                raise InputError(f"{path}: status 500")

    begun, released = [], Event()

    def never(*_args, **_more):
        begun.append(1)
        released.wait()

    nccl = torch.cuda.nccl
    monkeypatch.setattr(nccl, "unique_id", lambda: bytes(128))
    monkeypatch.setattr(nccl, "init_rank", never if refused.startswith("/init") else lambda *_: "group")
    monkeypatch.setattr(nccl, "all_reduce", lambda *_args, **_more: None)
    monkeypatch.setattr(nccl, "broadcast", never)
    try:
        with pytest.raises(InputError, match=refused):
            NcclTransfer().send(tiny_model[0], Refusing())
        assert bool(begun) == (after > 0), "one that refuses at once is not waited for at all"
    finally:
        released.set()


def test_a_transfer_over_nccl_joins_once_and_broadcasts_what_it_announced(tiny_model, monkeypatch):
    """The collectives are recorded: there is no NCCL without a GPU."""
    calls = []

    class Recorder:
        def get(self, path):
            return {"world_size": 2}

        def post(self, path, body=None):
            calls.append((path, body))

    nccl = torch.cuda.nccl
    monkeypatch.setattr(nccl, "unique_id", lambda: bytes(128))
    monkeypatch.setattr(nccl, "init_rank", lambda ranks, uid, rank: calls.append(("join", ranks, rank)) or "group")
    monkeypatch.setattr(nccl, "all_reduce", lambda tensors, comms: calls.append(("sum", len(tensors[0]), comms)))
    monkeypatch.setattr(nccl, "broadcast", lambda tensors, root, comms: calls.append(("send", tensors[0].shape, root)))
    network, _ = tiny_model
    transfer, server = NcclTransfer(), Recorder()
    transfer.send(network, server)
    (update,) = [call[1]["update_info"] for call in calls if call[0] == "/update_weights"]
    assert [list(call[1]) for call in calls if call[0] == "send"] == update["shapes"]
    assert ("join", 3, 0) in calls and ("sum", 1, ["group"]) in calls
    assert calls[-1][0] == "/finish_weight_update"
    calls.clear()
    transfer.send(network, server)
    assert not any(call[0] in ("join", "/init_weight_transfer_engine") for call in calls)
