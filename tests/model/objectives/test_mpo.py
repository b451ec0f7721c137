"""MPO against its closed form, TRL's DPO trainer, the published formula of BCO, and finite differences."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model.families.interface import Sample
from model.objectives.config import MpoObjective
from model.objectives.log_probability import segment_sums, token_log_probabilities
from model.objectives.mpo import (
    PairLogProbabilities,
    RunningMean,
    generation_losses,
    mpo_loss,
    preference_losses,
    quality_losses,
)
from model.training.batches import pack, pad
from tests.trl_oracle import answer_states, dpo_loss, language_model

PUBLISHED = MpoObjective()
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12]]
CHOSEN = [[0, 2, 3], [0], [4, 0, 13, 14, 15]]
REJECTED = [[2, 2], [3, 16, 17, 18], [19]]
ln2 = math.log(2)

floats = st.floats(-30, 30, allow_nan=False)


@pytest.fixture(scope="module")
def models():
    """(policy, reference): two different networks."""
    torch.set_num_threads(1)
    return language_model(seed=0), language_model(seed=1).requires_grad_(False)


def pairs_of(model, prompts=PROMPTS, chosen=CHOSEN, rejected=REJECTED):
    """Log-probabilities of the answers, as training takes them."""
    lengths = [len(answer) for answer in chosen + rejected]
    states, targets = answer_states(model, prompts * 2, chosen + rejected)
    sums = segment_sums(token_log_probabilities(states, model.lm_head, targets, 4), lengths)
    return PairLogProbabilities(*sums.chunk(2))


def our_loss(policy, reference, chosen=CHOSEN, objective=PUBLISHED, delta=0.0):
    return mpo_loss(policy, reference, [len(answer) for answer in chosen], objective, delta, len(chosen))


def random_pairs(pairs, seed):
    values = -10 * torch.rand(4, pairs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return PairLogProbabilities(*values[:2]), PairLogProbabilities(*values[2:])


def test_at_the_start_the_loss_is_its_closed_form(models):
    """0.8 ln 2 + 0.2 * 2 ln 2 + the cross-entropy of the chosen answers, each over its own tokens."""
    policy, _ = models
    pairs = pairs_of(policy)
    found = our_loss(pairs, PairLogProbabilities(*(x.detach() for x in pairs)))
    cross_entropies = [
        nn.functional.cross_entropy(policy(torch.tensor([p + c])).logits[0, len(p) - 1 : -1], torch.tensor(c))
        for p, c in zip(PROMPTS, CHOSEN, strict=True)
    ]
    assert found.loss.item() == pytest.approx(0.8 * ln2 + 0.4 * ln2 + np.mean([x.item() for x in cross_entropies]))
    means = {name: value.item() / 3 for name, value in found.sums.items()}
    assert means["preference"] == pytest.approx(ln2)
    assert means["quality"] == pytest.approx(2 * ln2)
    assert means["chosen_reward"] == means["rejected_reward"] == means["correct"] == 0
    assert RunningMean().add_rewards(found.sums).mean == 0


@pytest.mark.parametrize("pair", [0, 1, 2])
def test_a_pair_has_the_loss_and_the_gradients_of_trl(models, pair):
    """Without delta, which TRL no longer has. Of one pair TRL's mean over tokens is the mean over the answer."""
    policy, reference = models
    rows = [[given[pair]] for given in (PROMPTS, CHOSEN, REJECTED)]
    fixed = pairs_of(reference, *rows)
    terms = ["sigmoid", "bco_pair", "sft"]
    expected, metrics = dpo_loss(policy, *rows, fixed, terms, [0.8, 0.2, 1.0], 0.1)
    found = our_loss(pairs_of(policy, *rows), fixed, rows[1])
    torch.testing.assert_close(found.loss, expected)
    assert found.sums["chosen_reward"].item() == pytest.approx(metrics["rewards/chosen"], rel=1e-4)
    assert found.sums["rejected_reward"].item() == pytest.approx(metrics["rewards/rejected"], rel=1e-4)
    parameters = list(policy.parameters())
    gradients = torch.autograd.grad(found.loss, parameters), torch.autograd.grad(expected, parameters)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_padded_pairs_of_any_length_have_the_preference_and_quality_of_trl(models):
    policy, reference = models
    fixed = pairs_of(reference)
    expected, metrics = dpo_loss(policy, PROMPTS, CHOSEN, REJECTED, fixed, ["sigmoid", "bco_pair"], [0.8, 0.2], 0.3)
    objective = MpoObjective(generation_weight=0.0, beta=0.3)
    found = our_loss(pairs_of(policy), fixed, objective=objective)
    torch.testing.assert_close(found.loss, expected)
    assert found.sums["correct"].item() / 3 == pytest.approx(metrics["rewards/accuracies"])


def test_the_generation_term_is_that_of_trl_where_answers_are_equally_long(models):
    """Elsewhere TRL weighs an answer by its length; the paper's term is per answer."""
    policy, reference = models
    short, long = [[0, 2], [3, 0], [4, 4]], CHOSEN
    for chosen, equal in ((short, True), (long, False)):
        fixed = pairs_of(reference, PROMPTS, chosen)
        expected, _ = dpo_loss(policy, PROMPTS, chosen, REJECTED, fixed, ["sft"], [1.0], 0.1)
        objective = MpoObjective(preference_weight=0.0, quality_weight=0.0)
        found = our_loss(pairs_of(policy, PROMPTS, chosen), fixed, chosen, objective)
        assert (found.loss.item() == pytest.approx(expected.item(), rel=1e-4)) == equal


def test_over_the_mean_length_the_generation_term_is_that_of_trl(models):
    """With its gradients: TRL's mean over the tokens of a batch is the sum over answers by their mean length."""
    policy, reference = models
    fixed = pairs_of(reference)
    expected, _ = dpo_loss(policy, PROMPTS, CHOSEN, REJECTED, fixed, ["sigmoid", "sft"], [0.8, 1.0], 0.1)
    length = np.mean([len(answer) for answer in CHOSEN])
    found = our_loss(pairs_of(policy), fixed, objective=MpoObjective(quality_weight=0.0, generation_length=length))
    torch.testing.assert_close(found.loss, expected)
    parameters = list(policy.parameters())
    gradients = torch.autograd.grad(found.loss, parameters), torch.autograd.grad(expected, parameters)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_by_their_own_lengths_the_generation_term_makes_short_answers_likelier_and_by_a_constant_neither():
    """One short and one long answer are chosen equally often, and the first token decides: the choice's gradient."""

    def pull(length):
        choice = torch.zeros((), requires_grad=True)
        log_p = torch.stack([nn.functional.logsigmoid(choice), nn.functional.logsigmoid(-choice)])
        zero = torch.zeros(2)
        objective = MpoObjective(preference_weight=0, quality_weight=0, generation_length=length)
        loss = mpo_loss(PairLogProbabilities(log_p, zero), PairLogProbabilities(zero, zero), [2, 16], objective, 0.0, 2)
        return torch.autograd.grad(loss.loss, choice)[0].item()

    assert pull(None) == pytest.approx(-(1 / 2 - 1 / 16) / 4)
    assert pull(9.0) == 0


@settings(deadline=None, max_examples=50)
@given(floats, floats, st.floats(-3, 3))
def test_quality_is_the_published_formula_with_its_shift(chosen, rejected, delta):
    def log_sigmoid(x):
        return -np.logaddexp(0, -x)

    found = quality_losses(*(torch.tensor([x], dtype=torch.float64) for x in (chosen, rejected)), delta)
    assert found.item() == pytest.approx(-log_sigmoid(chosen - delta) - log_sigmoid(-(rejected - delta)))


@settings(deadline=None, max_examples=50)
@given(floats, floats, st.floats(-3, 3))
def test_preference_knows_no_shift(chosen, rejected, shift):
    chosen, rejected = (torch.tensor([x], dtype=torch.float64) for x in (chosen, rejected))
    torch.testing.assert_close(preference_losses(chosen + shift, rejected + shift), preference_losses(chosen, rejected))


def test_a_reward_above_the_shift_makes_an_answer_good():
    """The classifier's threshold is delta: moving both rewards and delta together changes nothing."""
    rewards = torch.tensor([1.0, -0.5])
    torch.testing.assert_close(
        quality_losses(rewards + 2, rewards.flip(0) + 2, 2.3), quality_losses(rewards, rewards.flip(0), 0.3)
    )


@pytest.mark.parametrize("delta", [0.0, 0.7])
def test_gradients_are_those_of_finite_differences(delta):
    policy, reference = random_pairs(4, seed=3)

    def loss(chosen, rejected):
        return mpo_loss(PairLogProbabilities(chosen, rejected), reference, [3, 1, 7, 2], PUBLISHED, delta, 5).loss

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in policy])


def test_a_step_makes_the_chosen_likelier_and_the_rejected_less_likely():
    policy, reference = random_pairs(4, seed=1)
    chosen, rejected = (x.requires_grad_() for x in policy)
    fixed = PairLogProbabilities(*(x.clone().requires_grad_() for x in reference))
    mpo_loss(PairLogProbabilities(chosen, rejected), fixed, [2] * 4, PUBLISHED, 0.2, 4).loss.backward()
    assert (chosen.grad < 0).all()
    assert (rejected.grad > 0).all()
    assert fixed.chosen.grad is fixed.rejected.grad is None


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 8), st.data())
def test_micro_batches_and_ranks_add_up_to_the_step(pairs, data):
    policy, reference = random_pairs(pairs, data.draw(st.integers(0, 100)))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=pairs, max_size=pairs))
    cuts = sorted(data.draw(st.sets(st.integers(1, pairs - 1)))) if pairs > 1 else []
    whole = mpo_loss(policy, reference, lengths, PUBLISHED, 0.4, pairs)
    parts = [
        mpo_loss(
            PairLogProbabilities(*(x[start:stop] for x in policy)),
            PairLogProbabilities(*(x[start:stop] for x in reference)),
            lengths[start:stop],
            PUBLISHED,
            0.4,
            pairs,
        )
        for start, stop in zip([0, *cuts], [*cuts, pairs], strict=True)
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    for name, value in whole.sums.items():
        assert sum(part.sums[name] for part in parts).item() == pytest.approx(value.item()), name


class Bigrams(nn.Module):
    """A language model that sees one token back, so that what stands further left must not matter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(23, 8), nn.Linear(8, 23)

    def pairs(self, batch, answers):
        states = self.embedding(batch.inputs.ids.flatten()[batch.inputs.keep])
        scores = token_log_probabilities(states, self.head, batch.targets, 3)
        return PairLogProbabilities(*segment_sums(scores, [len(answer) for answer in answers]).chunk(2))


def sample(prompt, answer):
    trained = [False] * len(prompt) + [True] * len(answer)
    return Sample("row", prompt + answer, trained, {}, 0)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 9), min_size=6, max_size=6), st.booleans())
def test_neither_padding_nor_packing_nor_the_length_of_the_prompt_changes_the_loss(lengths, packed):
    policy, reference, answers = Bigrams(), Bigrams(), CHOSEN + REJECTED
    with torch.no_grad():
        reference.head.weight.mul_(0.5)

    def loss(prompts, packed):
        samples = [sample(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        batch = pack(samples, "token") if packed else pad(samples, "token", 1)
        return our_loss(policy.pairs(batch, answers), reference.pairs(batch, answers), delta=0.1).loss

    found = loss([[20] * length + [5] for length in lengths], packed)
    torch.testing.assert_close(found, loss([[5]] * 6, packed=False))


def test_token_id_zero_trains():
    policy, answers = Bigrams(), [[0, 0], [7]]
    batch = pad([sample([5], answer) for answer in answers], "token", 1)
    pairs = policy.pairs(batch, answers)
    our_loss(pairs, PairLogProbabilities(*(x.detach() for x in pairs)), answers[:1]).loss.backward()
    # Per token of the chosen answer: beta (0.4 + 0.1) from preference and quality, and 1 / 2 from generation.
    logits = policy.head(policy.embedding(torch.tensor([5, 0])))
    pushed = (0.05 + 0.5) * (nn.functional.one_hot(torch.tensor([0, 0]), 23) - logits.softmax(-1)).sum(0)
    pulled = 0.05 * (nn.functional.one_hot(torch.tensor(7), 23) - logits[0].softmax(-1))
    torch.testing.assert_close(policy.head.bias.grad, pulled - pushed)
    assert policy.head.bias.grad[0] < -0.4


def test_an_empty_chosen_answer_has_no_generation_term():
    assert generation_losses(torch.tensor([0.0, -3.0]), [0, 2]).tolist() == [0, 1.5]


def test_different_numbers_of_pairs_are_refused():
    policy, reference = random_pairs(3, seed=0)
    with pytest.raises(ValueError, match="2 chosen lengths, but log-probabilities of shapes"):
        mpo_loss(policy, reference, [1, 1], PUBLISHED, 0.0, 3)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), max_size=6))
def test_delta_is_the_mean_of_all_rewards_so_far(steps):
    running = RunningMean()
    for rewards in steps:
        running = running.add(sum(rewards), len(rewards))
    everything = [reward for rewards in steps for reward in rewards]
    assert running.mean == pytest.approx(np.mean(everything) if everything else 0.0, abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=8), st.integers(1, 7))
def test_ranks_that_add_their_sums_share_one_delta(rewards, cut):
    def sums(part):
        chosen, rejected = (torch.tensor(x, dtype=torch.float64) for x in zip(*part, strict=True))
        zero = torch.zeros_like(chosen)
        pairs = PairLogProbabilities(chosen / PUBLISHED.beta, rejected / PUBLISHED.beta)
        return mpo_loss(pairs, PairLogProbabilities(zero, zero), [1] * len(part), PUBLISHED, 0.0, 1).sums

    parts = [part for part in (rewards[:cut], rewards[cut:]) if part]
    added = {name: sum(sums(part)[name].item() for part in parts) for name in sums(rewards)}
    shared, alone = RunningMean(1.5, 4).add_rewards(added), RunningMean(1.5, 4).add_rewards(sums(rewards))
    assert shared.count == alone.count == 4 + 2 * len(rewards)
    assert shared.mean == pytest.approx(alone.mean)
    assert alone.mean == pytest.approx((1.5 + np.sum(rewards)) / (4 + 2 * len(rewards)))


@settings(deadline=None, max_examples=50)
@given(st.floats(-1e6, 1e6), st.integers(0, 2**40))
def test_a_checkpoint_keeps_delta_to_the_last_bit(total, count):
    running = RunningMean(total, count)
    assert RunningMean.from_state(json.loads(json.dumps(running.state()))) == running
