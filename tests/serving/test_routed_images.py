"""A Flash model behind the servers: rows per tile travel, and every request is routed by itself."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from model.flash.decisions import Decision
from serving.wire import read_vision_reply, vision_request
from tests.serving.requests import ask, png

IMAGES = {"one tile": png(56, 56, seed=1), "several tiles": png(200, 90, seed=2), "a page": png(224, 168, seed=3)}


@pytest.fixture(scope="module")
def directories(tokenizer, tmp_path_factory) -> dict[str, Path]:
    """The same tiny Flash model under two decisions."""
    from model.flash.checkpoint import save_model
    from tests.tiny_flash import random_flash_model

    place = tmp_path_factory.mktemp("flash")
    network, processor = random_flash_model(tokenizer)
    for name, decision in (("absolute", Decision()), ("budget", Decision("budget", token_budget=60))):
        network.route_by(decision)
        save_model(network, processor, place / name)
    return {name: place / name for name in ("absolute", "budget")}


@pytest.fixture(scope="module")
def one_piece(directories):
    """The whole model in this process: rows per tile of the images, and the answer."""
    import torch

    from model.families.generation import Request, generate
    from model.flash.checkpoint import load_model, load_processor

    torch.set_num_threads(1)

    def run(name: str, text: str, images: list[bytes], tokens: int = 12):
        network, processor = load_model(directories[name]), load_processor(directories[name])
        encoded = network.encode(images)
        messages = [{"role": "user", "content": "<image>\n" * len(images) + text}]
        made = generate(network, processor, [Request(messages, [e.features for e in encoded])], tokens)[0]
        return [tuple(e.rows_per_tile) for e in encoded], made

    return run


def predictor(directory: Path, **settings):
    from serving.config import VisionServerConfig
    from serving.vision_predictor import VisionPredictor

    made = VisionPredictor(directory, VisionServerConfig(**settings))
    made.load()
    return made


def encode(made, *requests: list[bytes]):
    """Requests sent together; of each its images, or the error."""
    from kserve import InferRequest

    async def one(images: list[bytes]):
        reply = await made.predict(InferRequest.from_grpc(vision_request(images, "r")))
        return read_vision_reply(reply, len(images))

    async def together():
        return await asyncio.gather(*map(one, requests), return_exceptions=True)

    return asyncio.run(together())


def test_rows_per_tile_are_those_of_the_model_in_one_piece(directories, one_piece):
    made = predictor(directories["absolute"])
    images = list(IMAGES.values())
    replies = encode(made, *[[image] for image in images], images)
    alone = [one_piece("absolute", "?", [image])[0][0] for image in images]
    assert [reply[0].rows_per_tile for reply in replies[:3]] == alone
    assert [image.rows_per_tile for image in replies[3]] == one_piece("absolute", "?", images)[0]
    assert {rows for tiles in alone for rows in tiles} == {16, 4}, "all alike would show nothing"


def test_a_budget_spans_the_images_of_a_request_and_its_failure_is_that_requests_alone(directories, one_piece):
    from grpc_interceptor.exceptions import OutOfRange

    made = predictor(directories["budget"])
    page, photo = IMAGES["a page"], IMAGES["one tile"]
    alone, paired, too_many = encode(made, [page], [page, photo], [photo] * 16)
    assert [image.rows_per_tile for image in alone] == one_piece("budget", "?", [page])[0]
    assert [image.rows_per_tile for image in paired] == one_piece("budget", "?", [page, photo])[0]
    assert sum(sum(image.rows_per_tile) for image in paired) <= 60
    assert isinstance(too_many, OutOfRange) and "16 tiles need at least 64 visual tokens" in str(too_many)
    assert alone[0].key != paired[0].key
    again = encode(made, [page, photo])[0]
    assert [image.key for image in again] == [image.key for image in paired], "from the cache"
    assert [image.packed for image in again] == [image.packed for image in paired]


def test_another_decision_never_meets_features_of_this_one(directories):
    routed, full = (predictor(directories["absolute"], full_resolution=whole) for whole in (False, True))
    image = IMAGES["a page"]
    (first,), (second,) = encode(routed, [image])[0], encode(full, [image])[0]
    assert set(second.rows_per_tile) == {16} and set(first.rows_per_tile) != {16}
    assert first.key != second.key


def test_a_directory_that_lost_its_router_is_not_served_at_full_resolution_in_silence(directories, tmp_path):
    from model.data.errors import InputError

    shutil.copytree(directories["absolute"], tmp_path / "broken")
    (tmp_path / "broken" / "model-flash.safetensors").unlink()
    with pytest.raises(InputError, match="flash_mode asks for routing, but the directory has no router"):
        predictor(tmp_path / "broken")
    assert encode(predictor(tmp_path / "broken", full_resolution=True), [IMAGES["one tile"]])[0][0].rows_per_tile == (
        16,
    )


@pytest.fixture(scope="module")
def endpoint(directories, tmp_path_factory) -> Iterator[str]:
    """The three processes, started from what the deploy step renders."""
    from components.deploy.config import DeployConfig
    from components.deploy.step import render_processes
    from serving import launch

    processes = render_processes(DeployConfig())
    for process in processes[:2]:
        process["args"] += ["--settings", json.dumps({"threads": 1})]
    directory = tmp_path_factory.mktemp("deployment")
    model = {"name": "fovea", "version": 1, "storage_uri": directories["absolute"].as_uri(), "sha256": "0" * 64}
    document = {"schema_version": 1, "model": model, "processes": processes}
    (directory / "deployment.json").write_text(json.dumps(document))
    with launch.serving(directory, directory / "serve") as running:
        yield running.endpoint


@pytest.mark.slow
@pytest.mark.xdist_group("serving")
@pytest.mark.parametrize("images", [[], ["one tile"], ["several tiles"], ["a page", "one tile"]], ids=str)
def test_the_deployed_model_answers_as_it_does_in_one_piece(endpoint, one_piece, images):
    given = [IMAGES[name] for name in images]
    body = {"model": "fovea", "messages": ask("what is it?", *given), "max_tokens": 12}
    reply = httpx.post(f"{endpoint}/v1/chat/completions", json=body, timeout=60).json()
    rows, expected = one_piece("absolute", "what is it?", given)
    assert reply["choices"][0]["message"]["content"] == expected.text
    assert reply["usage"]["prompt_tokens"] == expected.prompt_tokens
    full = 16 * sum(len(tiles) for tiles in rows)
    assert not images or sum(map(sum, rows)) < full or images == ["one tile"], "routing would show nothing"
