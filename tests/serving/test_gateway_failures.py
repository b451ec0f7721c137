"""The gateway when a predictor is down, hangs, breaks off or is busy.

The deadline of a request is ten minutes here, beyond the limit of a test: what passes did not wait.
"""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from fastapi.testclient import TestClient
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from tests.serving.fakes import gateway, language_server, silent_server, unused_port, wait_for
from tests.serving.requests import ask, png

LONG = 600.0
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
EVENT = b'data: {"id": "1", "choices": [{"index": 0, "delta": {"content": "hi"}}]}\n\n'
OVERLOADED = b'{"error": {"message": "busy", "type": "x", "code": "overloaded"}}'


def post(client: TestClient, messages: list[dict], **options):
    return client.post("/v1/chat/completions", json={"model": "fovea", "messages": messages} | options)


def test_both_predictors_down_give_503_at_once():
    with gateway(request_timeout_s=LONG) as client:
        for messages in (ask("x"), ask("x", png())):
            reply = post(client, messages)
            assert reply.status_code == 503 and reply.headers["retry-after"] == "1"
            assert reply.json()["error"]["code"] in ("vision_unavailable", "language_unavailable")
        health = client.get("/healthz")
        assert health.status_code == 503
        assert health.json() == {"status": "unavailable", "vision": "unavailable", "language": "unavailable"}


def test_text_needs_no_vision_predictor_but_images_do():
    body = b'{"id": "1", "model": "upstream-name", "choices": []}'
    reply = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with language_server(reply) as url, gateway(language_url=url, request_timeout_s=LONG) as client:
        text = post(client, ask("x"))
        assert text.status_code == 200 and text.json()["model"] == "fovea"
        assert post(client, ask("x", png())).json()["error"]["code"] == "vision_unavailable"
        assert client.get("/healthz").json() == {"status": "unavailable", "vision": "unavailable", "language": "ok"}


def test_a_language_server_that_hangs_is_found_by_the_probe():
    limits = {"probe_timeout_s": 0.3, "request_timeout_s": LONG}
    with silent_server() as port, gateway(language_url=f"http://127.0.0.1:{port}", **limits) as client:
        assert post(client, ask("x")).json()["error"]["code"] == "language_unavailable"


def test_a_vision_predictor_that_hangs_meets_the_deadline():
    with (
        language_server(b"") as url,
        silent_server() as port,
        gateway(vision_port=port, language_url=url, request_timeout_s=0.5) as client,
    ):
        assert post(client, ask("x", png())).status_code in (503, 504)


def test_an_answer_that_never_comes_meets_the_deadline():
    with language_server(None) as url, gateway(language_url=url, request_timeout_s=0.5) as client:
        for stream in (False, True):
            reply = post(client, ask("x"), stream=stream)
            assert reply.status_code == 504 and reply.json()["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize(
    "tail",
    [b"", b"data: {", b"data: [1]\n\n", b"data: nonsense\n\n", b'data: {"error": {"message": "out of memory"}}\n\n'],
    ids=["end", "half", "list", "text", "error"],
)
def test_a_stream_that_breaks_off_ends_with_an_error_event(tail):
    with (
        language_server(STREAM_HEAD + EVENT + tail) as url,
        gateway(language_url=url, request_timeout_s=LONG) as client,
    ):
        reply = post(client, ask("x"), stream=True)
        events = [json.loads(line.removeprefix("data: ")) for line in reply.text.splitlines() if line]
        assert events[0]["choices"][0]["delta"]["content"] == "hi" and events[0]["model"] == "fovea"
        assert events[-1]["error"]["code"] == "language_failed"
        assert "fovea_gateway_broken_streams_total 1.0" in client.get("/metrics").text


def test_a_stream_that_ends_well_ends_with_done():
    with language_server(STREAM_HEAD + EVENT + b"data: [DONE]\n\n") as url, gateway(language_url=url) as client:
        assert post(client, ask("x"), stream=True).text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("upstream", "status", "code"),
    [
        (b"HTTP/1.1 429 X\r\nContent-Length: 65\r\nConnection: close\r\n\r\n" + OVERLOADED, 429, "overloaded"),
        (b"HTTP/1.1 500 X\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops", 502, "language_failed"),
        (b"HTTP/1.1 200 X\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops", 502, "language_failed"),
        (b"HTTP/1.1 200 X\r\nContent-Length: 400\r\nConnection: close\r\n\r\n{", 502, "language_failed"),
        (b"", 503, "language_unavailable"),
    ],
)
def test_what_the_language_server_does_wrong_is_no_500(upstream, status, code):
    with language_server(upstream) as url, gateway(language_url=url, request_timeout_s=LONG) as client:
        reply = post(client, ask("x"))
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


class Ready(GRPCInferenceServiceServicer):
    """A vision predictor, as far as a health question sees one; its answers to anything else are empty."""

    def ModelReady(self, request, context):
        return pb.ModelReadyResponse(ready=True)

    def ModelInfer(self, request, context):
        return pb.ModelInferResponse()


def answer_with_vision(predictor):
    """The gateway's reply to an image where ``predictor`` is the vision predictor."""
    server = grpc.server(ThreadPoolExecutor(1))
    add_GRPCInferenceServiceServicer_to_server(predictor, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with language_server(b"") as url, gateway(vision_port=port, language_url=url, request_timeout_s=LONG) as client:
            return post(client, ask("x", png()))
    finally:
        server.stop(None).wait()


def test_what_the_vision_predictor_does_wrong_is_no_500():
    reply = answer_with_vision(Ready())
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "vision_failed")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "invalid_image"),
        (grpc.StatusCode.OUT_OF_RANGE, "token_budget_exceeded"),
    ],
)
def test_what_a_user_can_mend_says_what_it_is(status, code):
    class Refusing(Ready):
        def ModelInfer(self, request, context):
            context.abort(status, "16 tiles are more than these")

    reply = answer_with_vision(Refusing())
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["message"]) == (400, code, "16 tiles are more than these")


def test_a_predictor_that_comes_back_is_found():
    port = unused_port()
    with gateway(vision_port=port, request_timeout_s=LONG) as client:
        assert client.get("/healthz").json()["vision"] == "unavailable"
        server = grpc.server(ThreadPoolExecutor(1))
        add_GRPCInferenceServiceServicer_to_server(Ready(), server)
        assert server.add_insecure_port(f"127.0.0.1:{port}") == port
        server.start()
        wait_for(lambda: client.get("/healthz").json()["vision"] == "ok")
        server.stop(None).wait()
        wait_for(lambda: client.get("/healthz").json()["vision"] == "unavailable")


def test_more_requests_than_slots_are_turned_away():
    with language_server(None) as url, gateway(language_url=url, max_in_flight=1, request_timeout_s=2.0) as client:
        held = threading.Thread(target=post, args=(client, ask("x")))
        held.start()
        wait_for(lambda: "fovea_gateway_in_flight 1.0" in client.get("/metrics").text)
        reply = post(client, ask("x"))
        assert reply.status_code == 429 and reply.headers["retry-after"] == "1"
        held.join()
        assert "fovea_gateway_in_flight 0.0" in client.get("/metrics").text
