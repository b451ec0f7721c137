"""Preference pairs of every family: their tokens are those of ``Processor.sample``, their first loss transformers'."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.families.opening import save_network
from model.flash.network import normalise
from model.objectives.config import MpoObjective
from model.training.config import TrainingConfig
from model.training.loop import train
from model.training.pairs import pair_tree
from model.training.preferences import preference_stage
from model.training.references import ReferenceCache
from tests.model.families.test_qwen_network import stock_logits
from tests.tiny import picture, question_row
from tests.tiny_internvl import ARCHITECTURES, random_architecture
from tests.tiny_qwen import mixed_row

ANSWERS = ("!7 it is", "no: 12"), ("<think>a\n\nb</think>\\boxed{4}", "4"), ("\u4e66 \U0001f600", "\n\nx ")
CONFIG = TrainingConfig(learning_rate=1e-5, steps=1, batch_size=3, precision="float32", threads=1, loss_chunk=5)


def pairs_of(rows):
    """The rows with answers that hold digits, line ends, blanks and several bytes a character."""
    for row, (chosen, rejected) in zip(rows, ANSWERS, strict=True):
        row |= {"chosen": chosen, "rejected": rejected}
        row["messages"] = [
            *({"role": role, "content": text} for role, text in (("user", "Before?"), ("assistant", "That."))),
            *row["messages"],
        ]
    return rows


def internvl_rows():
    """Several tiles, two images, text alone."""
    rng = np.random.default_rng(0)
    images = [[picture(rng, 2, 2)], [picture(rng), picture(rng, 1, 2)], []]
    return pairs_of([question_row(f"row-{i}", given, "a") for i, given in enumerate(images)])


def qwen_rows():
    """A clip between images, a clip, text alone."""
    rng = np.random.default_rng(0)
    return pairs_of([mixed_row(f"row-{i}", rng, kinds, "a") for i, kinds in enumerate(("ivi", "v", ""))])


def answered(row, answer):
    """The row of supervised training with this answer."""
    return row | {"messages": [*row["messages"][:-1], {"role": "assistant", "content": answer}]}


def last_answer(sample, trunk):
    """Tokens of a sample behind a question, as far as they carry loss."""
    start = len(trunk.input_ids)
    assert sample.input_ids[:start] == trunk.input_ids
    trained = sample.trained[start:]
    length = trained.index(False) if False in trained else len(trained)
    assert not any(trained[length:])
    return sample.input_ids[start : start + length]


def assert_tokens_are_those_of_samples(processor, rows):
    for row in rows:
        tree = pair_tree(processor, row, 10_000)
        for name, branch in zip(("chosen", "rejected"), tree.branches, strict=True):
            assert last_answer(processor.sample(answered(row, row[name])), tree.trunk) == branch
            assert branch[-1] == processor.eos_token_id


def first_record(network, processor, rows, directory):
    reference = ReferenceCache(directory / "cache", "m0", lambda *_: None)
    stage = preference_stage("mpo", CONFIG, MpoObjective(), reference)
    return train(network, processor, rows, stage, CONFIG, directory / "state", lambda *_: None).history[0]


def assert_closed_form(record, logits, processor, rows, *, mixture):
    """``logits`` of transformers, for a sample; a ``mixture`` of experts has an auxiliary loss beside the three."""
    entropies = []
    for row in rows:
        sample, trunk = processor.sample(answered(row, row["chosen"])), processor.question(row)
        start, answer = len(trunk.input_ids), last_answer(sample, trunk)
        entropies.append(F.cross_entropy(logits(sample)[start - 1 : start - 1 + len(answer)], torch.tensor(answer)))
    assert record["preference"] == pytest.approx(math.log(2), abs=1e-5)
    assert record["quality"] == pytest.approx(2 * math.log(2), abs=1e-5)
    assert record["generation"] == pytest.approx(float(torch.stack(entropies).mean()), rel=2e-5)
    auxiliary = record["loss"] - (1.2 * math.log(2) + record["generation"])
    assert 1e-3 < auxiliary < 0.1 if mixture else abs(auxiliary) < 1e-4


# The largest sizes are these under the tower of the 38B.
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if not name.startswith(("8b", "241b"))])
def test_pairs_of_internvl(name, tmp_path):
    from transformers import AutoModelForImageTextToText

    network, processor = random_architecture(name)
    save_network(network, processor, tmp_path / "model")
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()

    def logits(sample):
        tiles = torch.from_numpy(sample.media["tiles"])
        with torch.no_grad():
            seen = {"pixel_values": normalise(tiles)} if len(tiles) else {}
            return stock(input_ids=torch.tensor([sample.input_ids]), **seen).logits[0]

    rows = internvl_rows()
    assert_tokens_are_those_of_samples(processor, rows)
    record = first_record(network, processor, rows, tmp_path)
    assert_closed_form(record, logits, processor, rows, mixture="mixture" in name or "OSS" in name)


def test_pairs_of_a_qwen_vl(qwen, tmp_path):
    from model.families.opening import load_network

    rows = qwen_rows()
    assert_tokens_are_those_of_samples(qwen.processor, rows)
    record = first_record(load_network(qwen.directory), qwen.processor, rows, tmp_path)
    mixture = qwen.generation.endswith("moe")
    assert_closed_form(record, lambda sample: stock_logits(qwen.stock, sample), qwen.processor, rows, mixture=mixture)
