"""Rollouts by the network itself: what is drawn, how probable it was, and that neighbours never matter."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from model.data.errors import InputError
from model.families.generation import answer_rows
from model.families.interface import Inputs
from model.families.opening import load_network, load_processor
from model.objectives.log_probability import token_log_probabilities
from model.training.attention import use_varlen_attention
from model.training.rollout import NetworkSampler, Query, generating
from model.training.sampling import Sampling, sampleable_ids
from tests.tiny import byte_tokenizer, picture, question_row, random_model
from tests.tiny_flash import random_flash_model
from tests.tiny_internvl import random_architecture
from tests.tiny_qwen import mixed_row, save_stock

TOKENS = 8
GREEDY = Sampling(temperature=1e-6, max_new_tokens=TOKENS)


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


QWEN = ["qwen2_5_vl", "qwen3_vl", slow("qwen2_vl"), slow("qwen3_vl_moe")]


@pytest.fixture(scope="module", params=["internvl", "flash", slow("gpt_oss"), *QWEN])
def family(request, tmp_path_factory):
    """(network, processor, questions about nothing, an image, two images of several tiles, a video)."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(5)
    opened = {
        "internvl": lambda: random_model(byte_tokenizer()),
        "flash": lambda: random_flash_model(byte_tokenizer()),
        "gpt_oss": lambda: random_architecture("20b, GPT-OSS"),
    }
    if request.param in opened:
        shown = [[], [picture(rng)], [picture(rng, 2, 1), picture(rng, 1, 3)]]
        rows = [question_row(f"row-{i}", images, "42", "What? " * (i + 1)) for i, images in enumerate(shown)]
        return *opened[request.param](), rows
    directory = tmp_path_factory.mktemp(request.param)
    save_stock(request.param, directory)
    rows = [mixed_row(f"row-{i}", rng, kind, "42", "What? " * (i + 1)) for i, kind in enumerate(["", "i", "ii", "v"])]
    return load_network(directory), load_processor(directory), rows


@pytest.fixture(scope="module")
def internvl():
    torch.set_num_threads(1)
    return random_model(byte_tokenizer())


def forbidden_ids(network, processor):
    vocabulary = network.config.text_config.vocab_size
    return sorted(set(range(vocabulary)) - set(sampleable_ids(processor.tokenizer, processor.eos_token_id, vocabulary)))


@contextmanager
def biased_head(network, ids, bias):
    """The network with ``bias`` added to the logits of ``ids``."""
    head = network.head
    other = nn.Linear(head.in_features, head.out_features)
    with torch.no_grad():
        other.weight.copy_(head.weight)
        other.bias.zero_()
        other.bias[ids] = bias
    owner = network if hasattr(network, "lm_head") else network.language_model
    owner.lm_head = other
    try:
        yield
    finally:
        owner.lm_head = head


def sample(network, processor, rows, count, sampling=GREEDY, seed=0, **options):
    return NetworkSampler(network, processor, **options).sample([Query(row) for row in rows], count, sampling, seed)


def whole_states(network, processor, row, answer, after=0):
    """Final states before each answer token (and ``after`` more) of one forward pass without a cache."""
    (question,) = network.prepare([processor.question(row)])
    ids, first = [*question.input_ids, *answer], len(question.input_ids)
    positions = None
    if question.positions is not None:
        further = question.positions.max() + 1 + np.tile(np.arange(len(answer)), (3, 1))
        positions = torch.from_numpy(np.concatenate([question.positions, further], axis=1))[:, None]
    media = {name: torch.from_numpy(array) for name, array in question.media.items()}
    keep = torch.arange(first - 1, len(ids) - 1 + after)
    inputs = Inputs(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long), positions, None, media, False, keep)
    return network.hidden(inputs).states


@torch.no_grad()
def full_forward(network, processor, row, answer):
    """Log-probabilities of answer tokens as training computes them."""
    states = whole_states(network, processor, row, answer)
    return token_log_probabilities(states, network.head, torch.tensor(answer), 64)


@torch.no_grad()
def next_token_logits(network, processor, row):
    return network.head(whole_states(network, processor, row, [], after=1))[0]


def test_towards_temperature_zero_answers_are_those_of_greedy_generation(family):
    network, processor, rows = family
    with biased_head(network, forbidden_ids(network, processor), -1e4):
        sampled = sample(network, processor, rows, 2)
        greedy = answer_rows(network, processor, rows, max_new_tokens=TOKENS)
    # A completion is shown without any special token, an answer with the tags of its boxes.
    shown = [[processor.decode(response.token_ids) for response in group] for group in sampled]
    assert shown == [[text, text] for text in greedy]
    assert len(set(greedy)) == len(greedy)


def test_log_probabilities_are_those_of_a_forward_pass_without_temperature_or_masks(family):
    network, processor, rows = family
    groups = sample(network, processor, rows, 2, Sampling(temperature=1.7, top_k=40, max_new_tokens=TOKENS))
    for row, group in zip(rows, groups, strict=True):
        for response in group:
            expected = full_forward(network, processor, row, response.token_ids)
            torch.testing.assert_close(torch.tensor(response.log_probabilities), expected, rtol=1e-4, atol=1e-4)


def test_neither_neighbours_nor_memory_nor_the_number_of_answers_change_an_answer(family):
    network, processor, rows = family
    free = Sampling(max_new_tokens=TOKENS)

    def tokens(groups):
        return [[response.token_ids for response in group] for group in groups]

    together = tokens(sample(network, processor, rows, 5, free))
    assert tokens(sample(network, processor, rows, 5, free, max_tokens=200)) == together
    assert tokens(sample(network, processor, rows, 5, free, max_tokens=1)) == together
    assert [tokens(sample(network, processor, [row], 5, free))[0] for row in rows] == together
    assert tokens(sample(network, processor, rows[::-1], 2, free)) == [group[:2] for group in together[::-1]]
    assert len({tuple(answer) for group in together for answer in group}) == 5 * len(rows)
    assert tokens(sample(network, processor, rows, 5, free, seed=1)) != together


def test_a_prefix_begins_the_answer_and_is_not_part_of_the_response(family):
    network, processor, rows = family
    prompts = [processor.question(row).input_ids for row in rows]
    begun = NetworkSampler(network, processor).sample([Query(row, "The sum") for row in rows], 1, GREEDY, 0)
    for row, (response,), prompt in zip(rows, begun, prompts, strict=True):
        ids = processor.tokenizer.encode("The sum", add_special_tokens=False).ids
        after = full_forward(network, processor, row, [*ids, *response.token_ids])[len(ids) :]
        torch.testing.assert_close(torch.tensor(response.log_probabilities), after, rtol=1e-4, atol=1e-4)
        assert processor.question(row).input_ids == prompt


@pytest.mark.parametrize("word", ["<|im_end|>", "<IMG_CONTEXT>"])
def test_a_prefix_that_would_be_read_as_a_control_token_names_its_row(internvl, word):
    query = Query(question_row("one", [], "x"), f"I see {word}")
    with pytest.raises(InputError, match=rf"row one: the beginning of an answer holds .*{word[1:-1].strip('|')}"):
        NetworkSampler(*internvl).sample([query], 1, GREEDY, 0)


def test_first_tokens_are_drawn_as_often_as_the_softmax_says(internvl):
    network, processor = internvl
    row = question_row("one", [picture(np.random.default_rng(0))], "x")
    (group,) = sample(network, processor, [row], 4000, Sampling(temperature=0.8, max_new_tokens=1))
    allowed = sampleable_ids(processor.tokenizer, processor.eos_token_id, network.config.text_config.vocab_size)
    expected = next_token_logits(network, processor, row)[allowed].double().div(0.8).softmax(0).numpy()
    drawn = [response.token_ids[0] for response in group]
    counts = np.array([drawn.count(token) for token in allowed])
    assert counts.sum() == 4000
    often = expected * 4000 >= 5
    observed = [*counts[often], counts[~often].sum()]
    assert chisquare(observed, [*(expected[often] * 4000), expected[~often].sum() * 4000]).pvalue > 0.001


def test_control_tokens_are_never_sampled_however_likely(internvl):
    network, processor = internvl
    forbidden = forbidden_ids(network, processor)
    assert {processor.tokenizer.id_to_token(i) for i in forbidden} >= {"<IMG_CONTEXT>", "<|im_start|>", "<|endoftext|>"}
    row = question_row("one", [], "x")
    with biased_head(network, forbidden, 50.0):
        (group,) = sample(network, processor, [row], 40, Sampling(temperature=2.0, top_p=0.9, max_new_tokens=TOKENS))
    drawn = {token for response in group for token in response.token_ids}
    assert drawn.isdisjoint(forbidden) and len(drawn) > 50
    # The model itself gives almost all of its probability to what is forbidden, and the answers say so.
    assert max(max(response.log_probabilities) for response in group) < -20


def test_an_answer_that_ends_at_once_is_its_end_of_turn(internvl):
    network, processor = internvl
    with biased_head(network, [processor.eos_token_id], 1e4):
        ((response,),) = sample(network, processor, [question_row("one", [], "x")], 1)
    assert (response.token_ids, response.text, response.finish_reason) == ([processor.eos_token_id], "", "stop")
    assert response.log_probabilities == pytest.approx([0.0], abs=1e-6)


def test_an_answer_is_cut_at_its_limit_and_at_the_context(internvl):
    network, processor = internvl
    row = question_row("one", [], "x")
    with biased_head(network, [processor.eos_token_id], -1e4):
        ((response,),) = sample(network, processor, [row], 1)
        assert response.finish_reason == "length" and len(response.token_ids) == TOKENS
        context = network.config.text_config.max_position_embeddings
        row["messages"][0]["content"] += "a" * (context - len(processor.question(row).input_ids) - 3)
        ((response,),) = sample(network, processor, [row], 1)
    assert len(response.token_ids) == len(response.log_probabilities) == 3


def test_a_prompt_beyond_the_context_names_its_row(internvl):
    network, processor = internvl
    rows = [question_row("short", [], "x"), question_row("long", [], "x", "a" * 2100)]
    with pytest.raises(InputError, match=r"row long: prompt has \d+ tokens; the model's context is 2048"):
        sample(network, processor, rows, 2)


@pytest.mark.parametrize("logit", [float("nan"), float("inf")])
def test_a_network_whose_probabilities_are_none_names_the_row(internvl, logit):
    network, processor = internvl
    with biased_head(network, [7], logit), pytest.raises(InputError, match="row one: the model gives no finite"):
        sample(network, processor, [question_row("one", [], "x")], 2)


def test_a_group_shares_its_images_and_its_prompt(internvl):
    network, processor = internvl
    row = question_row("one", [picture(np.random.default_rng(0), 2, 1)], "x")
    tiles, computed, cached = [], [], []

    def watch(_module, _args, given):
        computed.append(given["inputs_embeds"].shape[:2].numel())
        cached.append(given["attention_mask"].numel())

    def count(_module, _args, given):
        tiles.append(len(given["pixel_values"]))

    hooks = [
        network.vision_tower.register_forward_pre_hook(count, with_kwargs=True),
        network.language_model.base_model.register_forward_pre_hook(watch, with_kwargs=True),
    ]
    prompt = len(processor.question(row).input_ids)
    sample(network, processor, [row, row], 6, max_tokens=4 * (prompt + TOKENS))
    for hook in hooks:
        hook.remove()
    assert sum(tiles) == 2 * 3
    assert computed[0] == prompt and computed.count(prompt) == 2
    assert sum(computed) <= 2 * prompt + 12 * (TOKENS - 1)
    assert max(cached) <= 4 * (prompt + TOKENS)


def test_a_network_in_training_samples_as_one_at_rest_and_trains_on(internvl):
    network, processor = internvl
    rows = [question_row("one", [picture(np.random.default_rng(0))], "x"), question_row("two", [], "x")]
    free = Sampling(max_new_tokens=TOKENS)
    expected = sample(network, processor, rows, 3, free)
    network.train()
    frozen = network.vision_tower.eval()
    with use_varlen_attention(network.language_model):
        assert sample(network, processor, rows, 3, free) == expected
        assert network.language_model.config._attn_implementation == "varlen"
        assert network.training and network.language_model.training and not frozen.training
    network.eval()


def test_the_state_of_training_returns_after_an_error_too(internvl):
    network, _ = internvl
    network.train()
    with pytest.raises(RuntimeError, match="stopped"), generating(network):
        assert not any(module.training for module in network.modules())
        raise RuntimeError("stopped")
    assert all(module.training for module in network.modules())
    network.eval()
