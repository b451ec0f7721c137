"""A Flash model whose language half is stock vLLM: it opens the directory, and takes rows that were routed.

Runs where FOVEA_VLLM_PYTHON names the interpreter of an environment made from requirements/vllm.txt.
"""

import httpx
import pytest
import torch

from model.families.generation import Request, generate
from model.flash.checkpoint import load_model, load_processor, save_model
from serving import launch
from tests.e2e.vllm_process import VLLM_PYTHON, serving_vllm
from tests.serving.requests import ask, png
from tests.tiny_flash import random_flash_model

TOKENS = 12
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not VLLM_PYTHON, reason="NOT CHECKED WITH VLLM: FOVEA_VLLM_PYTHON is not set"),
]


def test_vllm_answers_from_routed_features_as_the_model_in_one_piece(tokenizer, tmp_path):
    torch.set_num_threads(1)
    save_model(*random_flash_model(tokenizer), tmp_path / "flash")
    network, processor = load_model(tmp_path / "flash"), load_processor(tmp_path / "flash")
    options = ["--enable-mm-embeds", "--limit-mm-per-prompt", '{"image": 0, "video": 0}']
    with (
        serving_vllm(tmp_path / "flash", tmp_path / "log", options) as url,
        launch.serving(tmp_path / "flash", tmp_path / "serve", language_url=url) as served,
    ):
        for images in ([], [png(224, 168, seed=3)], [png(200, 90, seed=2)]):
            encoded = network.encode(images)
            kept = [rows for found in encoded for rows in found.rows_per_tile]
            assert not images or set(kept) == {16, 4}, "all alike would show nothing"
            messages = [{"role": "user", "content": "<image>\n" * len(images) + "what is it?"}]
            expected = generate(network, processor, [Request(messages, [e.features for e in encoded])], TOKENS)[0]
            body = {"model": "fovea", "messages": ask("what is it?", *images), "max_tokens": TOKENS}
            reply = httpx.post(f"{served.endpoint}/v1/chat/completions", json=body, timeout=120).json()
            assert reply["usage"]["prompt_tokens"] == expected.prompt_tokens
            assert reply["choices"][0]["message"]["content"].rstrip("\ufffd") == expected.text.rstrip("\ufffd")
