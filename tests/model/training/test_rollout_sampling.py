"""Drawing one token: transformers' distributions, borders of the random numbers, and ids that cannot be drawn."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from model.training.sampling import Sampling, answer_text, draw, sampleable_ids, uniforms
from tests.tiny import byte_tokenizer, harmony_tokenizer
from tests.tiny_qwen import qwen_tokenizer

LARGEST = 1 - 2.0**-53


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.6, 0.95, 0), Sampling(0.7, 1.0, 5), Sampling(1.5, 0.5, 9)])
def test_shares_of_the_random_numbers_are_the_probabilities_of_transformers(sampling):
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(1)) * 2
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    expected = warpers(None, logits).softmax(-1)[0]
    evenly = ((np.arange(20_000) + 0.5) / 20_000).tolist()
    drawn = draw(logits.expand(20_000, -1), torch.arange(30), evenly, sampling)
    torch.testing.assert_close(drawn.bincount(minlength=30) / 20_000, expected, rtol=0, atol=1e-4)


def test_only_allowed_ids_share_the_probability():
    logits = torch.tensor([[9.0, 1.0, 9.0, 2.0, 9.0]])
    evenly = ((np.arange(10_000) + 0.5) / 10_000).tolist()
    drawn = draw(logits.expand(10_000, -1), torch.tensor([1, 3]), evenly, Sampling())
    shares = drawn.bincount(minlength=5) / 10_000
    expected = torch.tensor([1.0, 2.0]).softmax(0)
    torch.testing.assert_close(shares, torch.tensor([0, expected[0], 0, expected[1], 0]), rtol=0, atol=1e-3)


@example([0.0, 1.1754943508222875e-38, 0.0, 0.0, 0.0, 0.0], {0, 1}, 0.0, 1e-30, 1e-9, 0)
@settings(max_examples=150, deadline=None)
@given(
    logits=st.lists(st.floats(-1e4, 1e4, width=32), min_size=6, max_size=6),
    allowed=st.sets(st.integers(0, 5), min_size=1),
    uniform=st.one_of(st.just(0.0), st.just(LARGEST), st.floats(0, LARGEST)),
    temperature=st.sampled_from([1e-30, 0.1, 1.0, 50.0]),
    top_p=st.sampled_from([1e-9, 0.5, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 100]),
)
def test_whatever_the_numbers_a_token_is_allowed_and_possible(logits, allowed, uniform, temperature, top_p, top_k):
    ids = torch.tensor(sorted(allowed))
    sampling = Sampling(temperature, top_p, top_k)
    (token,) = draw(torch.tensor([logits]), ids, [uniform], sampling).tolist()
    assert token in allowed
    # Closer than float32 probabilities can tell apart is a tie; at 1e-30, so is what can still be drawn.
    tie = temperature * (100 if temperature == 1e-30 else 1e-6)
    likelier = sum(logits[other] - logits[token] > tie for other in allowed)
    assert top_k == 0 or likelier < top_k
    if temperature == 1e-30 or top_p == 1e-9:
        assert likelier == 0


SHARES = (0.0, 0.2, 0.5, 0.8, 0.999)


@pytest.mark.parametrize("temperature", [1.0, 1000.0])
def test_the_largest_vocabularies_are_drawn_from_evenly_where_all_tokens_are_alike(temperature):
    vocabulary = 201_088
    tokens = [
        draw(torch.zeros(1, vocabulary), torch.arange(vocabulary), [u], Sampling(temperature)).item() for u in SHARES
    ]
    assert tokens == [int(share * vocabulary) for share in SHARES]


def test_random_numbers_depend_on_what_names_an_answer_and_on_its_position_alone():
    def first(*name):
        stream = uniforms(*name)
        return [next(stream) for _ in range(4)]

    names = [(0, "row", "", 0), (1, "row", "", 0), (0, "row", "", 1), (0, "row2", "", 0), (0, "row", "2", 0)]
    assert [first(*name) for name in names] == [first(*name) for name in names]
    assert len({tuple(first(*name)) for name in names}) == len(names)
    assert all(0 <= number < 1 for name in names for number in first(*name))


@pytest.mark.parametrize(
    ("tokenizer", "end"),
    [(byte_tokenizer(), "<|im_end|>"), (qwen_tokenizer(), "<|im_end|>"), (harmony_tokenizer(), "<|return|>")],
)
def test_text_thoughts_grounding_and_the_end_of_turn_can_be_sampled_and_nothing_else(tokenizer, end):
    text = tokenizer.get_vocab_size(with_added_tokens=False)
    tokenizer.add_tokens(["<think>", "</think>", "<|fim_pad|>", "<IMG_CONTEXT>", "<image>"])
    tags = [tag for name in ("ref", "box", "quad") for tag in (f"<{name}>", f"</{name}>")]
    tags += [f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad") for end in ("start", "end")]
    tokenizer.add_special_tokens([AddedToken(tag, special=True) for tag in (*tags, "<seal>", "<|vision_pad|>")])
    vocabulary = 64 + tokenizer.get_vocab_size()
    ids = sampleable_ids(tokenizer, tokenizer.token_to_id(end), vocabulary)
    names = {tokenizer.id_to_token(index) for index in ids if index >= text}
    assert names == {"<think>", "</think>", end, *tags}
    assert ids[:text] == list(range(text))
    assert sampleable_ids(tokenizer, tokenizer.token_to_id(end), 100) == list(range(100))


def test_the_text_of_an_answer_keeps_its_boxes_and_not_its_end():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens([AddedToken(tag, special=True) for tag in ("<ref>", "</ref>", "<box>", "</box>")])
    written = "<ref>a d\u00f6g</ref> <box>[[1, 2, 3, 4]]</box>"
    end = tokenizer.token_to_id("<|im_end|>")
    assert answer_text(tokenizer, [*tokenizer.encode(written).ids, end], end) == written
    assert answer_text(tokenizer, [end], end) == ""


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"max_new_tokens": 0}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="not so in"):
        Sampling(**wrong)
