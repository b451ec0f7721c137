"""A critic's scores in one pass, the best of several answers, and a critic that learns to tell right from wrong."""

import re

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from model.critic.critic import Critic, best_of, load_critic, verdict_ids
from model.critic.solutions import critic_messages, critic_row, split_steps
from model.data.errors import InputError
from model.families.generation import Prompt, decode
from model.families.opening import load_network, load_processor
from model.training.batches import pack, pad
from tests.tiny import byte_tokenizer, picture, question_row, random_model
from tests.tiny_flash import random_flash_model
from tests.tiny_qwen import mixed_row, save_stock

SOLUTIONS = ["I see 3.\n\nSo it is 3.\n\n3", "3", "It may be\n\n4"]


@pytest.fixture(scope="module")
def row():
    rng = np.random.default_rng(0)
    return question_row("r1", [picture(rng, 2)], "3", question="How many?")


def step_by_step(network, processor, row, solution) -> list[float]:
    """P(+) of every step by a forward pass of its own, over the conversation up to it."""
    steps, found = split_steps(solution), []
    plus, minus = (processor.tokenizer.token_to_id(verdict) for verdict in "+-")
    for number in range(1, len(steps) + 1):
        messages = critic_messages(row["messages"][0]["content"], steps[:number], ["+"] * number)
        (sample,) = network.prepare([processor.question({**row, "messages": messages})])
        batch = pad([sample], "token", processor.eos_token_id)
        batch.inputs.keep = torch.tensor([len(sample.input_ids) - 1])
        logits = network.head(network.hidden(batch.inputs).states)[0]
        found.append(float(torch.sigmoid(logits[plus] - logits[minus])))
    return found


@torch.no_grad()
def test_one_pass_gives_the_probability_of_a_pass_for_every_step(tiny_model, row):
    network, processor = tiny_model
    for score, solution in zip(Critic(network, processor, 2).scores(row, SOLUTIONS), SOLUTIONS, strict=True):
        expected = step_by_step(network, processor, row, solution)
        assert score.steps == pytest.approx(expected, abs=1e-5)
        assert score.score == pytest.approx(np.mean(expected), abs=1e-5)
        assert len(set(expected)) == len(expected)


@torch.no_grad()
@pytest.mark.parametrize("generation", ["qwen2_5_vl", "qwen3_vl"])
def test_a_qwen_is_a_critic_too(generation, tmp_path, rng):
    save_stock(generation, tmp_path)
    network, processor = load_network(tmp_path), load_processor(tmp_path)
    row = mixed_row("r1", rng, "i", "3")
    (score,) = Critic(network, processor).scores(row, SOLUTIONS[:1])
    assert score.steps == pytest.approx(step_by_step(network, processor, row, SOLUTIONS[0]), abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("routes", [True, False])
def test_a_critic_sees_every_tile_once_for_all_solutions(routes, monkeypatch):
    network, processor = random_flash_model(byte_tokenizer())
    if not routes:
        network.route_by(None)
    rng = np.random.default_rng(3)
    narrow, blind = question_row("r1", [picture(rng, 2)], "3"), question_row("r2", [], "3")
    wide = question_row("r3", [picture(rng, 2, 2), picture(rng)], "3")
    passed, tower = [], network.patches
    monkeypatch.setattr(network, "patches", lambda tiles: passed.append(len(tiles)) or tower(tiles))
    for asked in (narrow, blind, wide):
        passed.clear()
        scores = Critic(network, processor, 2).scores(asked, ["", *SOLUTIONS])[1:]
        assert sum(passed) == processor.question(asked).units
        for score, solution in zip(scores, SOLUTIONS, strict=True):
            assert score.steps == pytest.approx(step_by_step(network, processor, asked, solution), abs=1e-5)


def test_neither_neighbours_nor_their_number_change_a_score(tiny_model, row):
    together = Critic(*tiny_model).scores(row, SOLUTIONS)
    for solution, score in zip(SOLUTIONS, together, strict=True):
        assert Critic(*tiny_model, batch_size=1).scores(row, [solution])[0].score == pytest.approx(
            score.score, abs=1e-5
        )


@pytest.mark.parametrize("solution", ["", " \n\n ", "it shows <image>", "a\n\n<|im_end|>"])
def test_a_solution_that_cannot_be_judged_scores_nothing(tiny_model, row, solution):
    empty, other = Critic(*tiny_model).scores(row, [solution, "3"])
    assert (empty.score, empty.steps) == (0.0, ()) and empty.reason.startswith(("it is empty", "it holds <"))
    assert other.score > 0


def test_a_solution_beyond_the_critics_context_costs_no_other_its_score(tiny_model, row):
    long, other = Critic(*tiny_model).scores(row, ["so " * 1000, "3"])
    assert (long.score, long.steps) == (0.0, ()) and other == Critic(*tiny_model).scores(row, ["3"])[0]
    assert re.fullmatch(r"it has \d+ tokens with its question; the critic's context is 2048", long.reason)


def test_the_best_is_the_highest_and_the_first_of_equals():
    assert best_of([0.1, 0.7, 0.7, 0.2]) == 1
    assert best_of([0.0]) == 0
    with pytest.raises(ValueError, match="no answer"):
        best_of([])


def test_a_tokenizer_without_tokens_for_verdicts_is_refused(tiny_model):
    class Words:
        tokenizer = Tokenizer(models.BPE(vocab={"-": 0, "+": 1}, merges=[]))

    assert verdict_ids(Words.tokenizer) == (1, 0)
    Words.tokenizer = Tokenizer(models.BPE(vocab={"-": 0}, merges=[]))
    with pytest.raises(InputError, match=r"the tokenizer has 0 tokens for '\+'; a critic needs one"):
        Critic(tiny_model[0], Words())


@pytest.mark.parametrize(
    "lay", [lambda samples, eos: pad(samples, "token", eos), lambda samples, _: pack(samples, "token")]
)
def test_every_verdict_of_a_critics_row_carries_loss(tiny_model, row, lay):
    _, processor = tiny_model
    steps = [{"text": text, "label": label} for text, label in (("a", 1.0), ("b", 0.5), ("c", 0.0))]
    batch = lay([processor.sample(critic_row(row, "solution-0", steps))], processor.eos_token_id)
    plus, minus = verdict_ids(processor.tokenizer)
    end = processor.eos_token_id
    assert batch.targets.tolist() == [plus, end, plus, end, minus, end]


def separable(rng: np.random.Generator, count: int):
    """Solutions of which every step that says "yes" is right; one wrong step makes the later ones wrong."""
    rows = []
    for index in range(count):
        words = ["yes" if rng.random() < 0.6 else "no" for _ in range(3)]
        labels = [float("no" not in words[: number + 1]) for number in range(3)]
        steps = [{"text": text, "label": label} for text, label in zip(words, labels, strict=True)]
        rows.append(critic_row(question_row(f"r{index}", [], "x", question="?"), "s", steps))
    return rows


@pytest.mark.slow
def test_a_critic_trained_on_separable_steps_tells_right_from_wrong(tmp_path, monkeypatch):
    from model.flash.checkpoint import save_model
    from model.training.config import TrainingConfig
    from model.training.loop import supervised_stage, train

    # The published instructions are a thousand bytes, which a byte-level model reads at a thousand tokens a row.
    monkeypatch.setattr("model.critic.solutions.CRITIC_SYSTEM_PROMPT", "Judge.")
    rng = np.random.default_rng(0)
    network, processor = random_model(byte_tokenizer())
    config = TrainingConfig(
        learning_rate=2e-3, steps=80, batch_size=16, precision="float32", threads=1, weight_decay=0.0
    )
    before = Critic(network, processor).scores(question_row("q", [], "x", question="?"), ["yes\n\nno\n\nyes"])
    stage = supervised_stage("critic", config)
    train(network, processor, separable(rng, 200), stage, config, tmp_path / "state", lambda *_: None)
    save_model(network, processor, tmp_path / "critic")
    critic = load_critic(tmp_path / "critic")
    held = question_row("q", [], "x", question="?")
    solutions = ["no\n\nyes\n\nyes", "yes\n\nyes\n\nno", "yes\n\nyes\n\nyes", "yes\n\nno\n\nyes"]
    scores = critic.scores(held, solutions)
    assert best_of([score.score for score in scores]) == 2
    judged = [[p > 0.5 for p in score.steps] for score in scores]
    assert judged == [[False] * 3, [True, True, False], [True] * 3, [True, False, False]]
    assert before[0].steps != critic.scores(held, ["yes\n\nno\n\nyes"])[0].steps
    # What a critic says in a conversation is what its scores say.
    asked = processor.question({**held, "messages": critic_messages("?", ["yes"], ["+"])})
    (said,) = decode(critic.network, processor, [Prompt(asked.input_ids, None)], None, 4)
    assert said.text == "+"
