"""Stock vLLM as the language server behind our gateway and vision predictor: the answers of the model in one piece.

Runs where FOVEA_VLLM_PYTHON names the interpreter of an environment made from requirements/vllm.txt.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from model.families.generation import Request, generate
from model.flash.checkpoint import load_model, load_processor
from serving import launch
from tests.e2e.vllm_process import VLLM_PYTHON, serving_vllm
from tests.serving.requests import ask, png

TOKENS = 12

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not VLLM_PYTHON, reason="NOT CHECKED WITH VLLM: FOVEA_VLLM_PYTHON is not set"),
]
CASES = {
    "text only": ("how many digits?", []),
    "one tile": ("how many digits?", [png(56, 56, seed=1)]),
    "several tiles": ("read the digits", [png(200, 90, seed=2)]),
    "two images": ("which is larger?", [png(56, 56, seed=3), png(56, 56, seed=4)]),
}


@pytest.fixture(scope="module")
def vllm(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a vLLM server without a vision tower."""
    options = ["--enable-mm-embeds", "--limit-mm-per-prompt", '{"image": 0, "video": 0}']
    with serving_vllm(tiny_directory, tmp_path_factory.mktemp("vllm") / "log", options) as url:
        yield url


@pytest.fixture(scope="module")
def endpoint(vllm: str, tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with launch.serving(tiny_directory, tmp_path_factory.mktemp("serve"), language_url=vllm) as served:
        assert [process.name for process in served.processes] == ["vision", "gateway"]
        yield served.endpoint


@pytest.mark.parametrize("case", CASES)
def test_vllm_behind_the_gateway_gives_the_answer_of_the_model_in_one_piece(case, endpoint, tiny_directory):
    torch.set_num_threads(1)
    text, images = CASES[case]
    model, processor = load_model(tiny_directory), load_processor(tiny_directory)
    messages = [{"role": "user", "content": "<image>\n" * len(images) + text}]
    features = [encoded.features for encoded in model.encode(images)]
    expected = generate(model, processor, [Request(messages, features)], TOKENS)[0]
    body = {"model": "fovea", "messages": ask(text, *images), "max_tokens": TOKENS}
    reply = httpx.post(f"{endpoint}/v1/chat/completions", json=body, timeout=120).json()
    # vLLM leaves out a last character whose bytes are not all there; ours shows the replacement character.
    assert reply["choices"][0]["message"]["content"].rstrip("\ufffd") == expected.text.rstrip("\ufffd")
    assert reply["usage"]["completion_tokens"] == len(expected.token_ids)
    assert reply["usage"]["prompt_tokens"] == expected.prompt_tokens
    streamed = httpx.post(f"{endpoint}/v1/chat/completions", json=body | {"stream": True}, timeout=120).text
    assert streamed.rstrip().endswith("data: [DONE]")
