"""What is sent to a vLLM server, without one: messages, seeds, refusals, and the order of a transfer over NCCL."""

import numpy as np
import pytest
import torch

from model.data.errors import InputError
from model.training.rollout import Query
from model.training.vllm_rollout import VllmServer, conversation, request_seed
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
