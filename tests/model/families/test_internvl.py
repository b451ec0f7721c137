"""Every architecture of the published InternVL3.5 sizes, on tiny random checkpoints, against stock transformers."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from model.families.generation import answer_rows
from model.families.opening import load_network, load_processor, save_network
from model.flash.conversion import convert
from model.flash.network import normalise
from tests.tiny import picture, question_row
from tests.tiny_internvl import ARCHITECTURES, random_architecture


@dataclass
class Opened:
    """A random model of an architecture: ours, its directory, and what stock transformers makes of it."""

    name: str
    network: object
    processor: object
    directory: object
    stock: object


@pytest.fixture(scope="module", params=ARCHITECTURES)
def opened(request, tmp_path_factory):
    from transformers import AutoModelForImageTextToText

    network, processor = random_architecture(request.param)
    directory = tmp_path_factory.mktemp("architecture") / "model"
    save_network(network, processor, directory)
    stock, report = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    return Opened(request.param, network, processor, directory, stock.eval())


@pytest.fixture
def rows(rng):
    return [
        question_row("one", [picture(rng)], "!", "What is this?"),
        question_row("two", [picture(rng, 2, 1), picture(rng)], "!", "And these?"),
        question_row("none", [], "!", "What is one and one?"),
    ]


def test_logits_equal_those_of_transformers(opened, rows):
    for row in rows:
        sample = opened.processor.question(row)
        ids = torch.tensor([sample.input_ids])
        tiles = torch.from_numpy(sample.media["tiles"])
        with torch.inference_mode():
            ours = load_network(opened.directory)(ids, torch.ones_like(ids), tiles)
            theirs = opened.stock(input_ids=ids, pixel_values=normalise(tiles) if len(tiles) else None).logits
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def test_greedy_answers_equal_those_of_transformers(opened, rows):
    ours = answer_rows(load_network(opened.directory), load_processor(opened.directory), rows, max_new_tokens=6)
    assert len(set(ours)) > 1, "a constant answer would show nothing"
    for row, answer in zip(rows, ours, strict=True):
        sample = opened.processor.question(row)
        tiles = torch.from_numpy(sample.media["tiles"])
        ids = torch.tensor([sample.input_ids])
        seen = {"pixel_values": normalise(tiles)} if len(tiles) else {}
        theirs = opened.stock.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, **seen
        )
        assert answer == opened.processor.decode(theirs[0, ids.shape[1] :].tolist())


def test_the_original_layout_holds_the_same_network(opened, rows, tmp_path):
    convert(opened.directory, tmp_path / "original", "original")
    ours, original = load_network(opened.directory).state_dict(), load_network(tmp_path / "original").state_dict()
    assert ours.keys() == original.keys()
    assert all(torch.equal(ours[name], original[name]) for name in ours)
    answers = [
        answer_rows(load_network(path), load_processor(path), rows[:1], max_new_tokens=4)
        for path in (opened.directory, tmp_path / "original")
    ]
    assert answers[0] == answers[1]
    llm = json.loads((tmp_path / "original" / "config.json").read_text())["llm_config"]
    if "mixture" in opened.name:
        assert llm["num_experts"] == 4
    if "GPT-OSS" in opened.name:
        assert llm["rope_theta"] == 150000
        assert llm["rope_scaling"] == {
            "rope_type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        }


def test_the_answer_ends_with_the_architectures_own_token_and_trains(opened, rows):
    processor = load_processor(opened.directory)
    end = "<|return|>" if "GPT-OSS" in opened.name else "<|im_end|>"
    assert processor.eos_token_id == processor.special_id(end)
    saved = json.loads((opened.directory / "generation_config.json").read_text())
    assert saved["eos_token_id"] == processor.eos_token_id
    sample = processor.sample(rows[0])
    trained = [token for token, is_trained in zip(sample.input_ids, sample.trained, strict=True) if is_trained]
    # "!" is the real token 0.
    assert trained == [0, processor.eos_token_id]


def test_stock_transformers_renders_the_same_prompt(opened, rows):
    from transformers import AutoProcessor

    stock = AutoProcessor.from_pretrained(opened.directory)
    parts = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    text = stock.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    image = picture(np.random.default_rng(0))
    inputs = stock(text=[text], images=[image], return_tensors="pt")
    messages = [{"role": "user", "content": "<image>\nWhat is this?"}]
    ours = load_processor(opened.directory).conversation(messages, [image], generate=True)
    assert inputs["input_ids"][0].tolist() == ours.input_ids
