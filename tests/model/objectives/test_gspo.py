"""GSPO against its analytic gradient, TRL's GRPO trainer at sequence level, numpy, and a network that sees images."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model.objectives.config import GspoObjective
from model.objectives.gspo import group_advantages, gspo_loss, sequence_ratios, truncated_importance
from model.objectives.log_probability import token_log_probabilities, token_scores
from model.training.batches import pad
from tests.tiny import byte_tokenizer, picture, question_row, random_model
from tests.trl_oracle import answer_states, language_model
from tests.trl_oracle import gspo_loss as trl_gspo_loss

PUBLISHED = GspoObjective(epsilon_low=3e-4, epsilon_high=4e-4)
WIDE = GspoObjective(epsilon_low=0.1, epsilon_high=0.3)
PROMPTS = [[5, 6, 7]] * 3 + [[8]] * 3
ANSWERS = [[0, 2, 3], [0], [4, 0, 13, 14, 15], [2, 2], [3, 16, 17, 18], [19]]
LENGTHS = [len(answer) for answer in ANSWERS]
REWARDS = torch.tensor([1.0, 0.1, 0.9, 0.0, 0.0, 1.0])
GROUPS = [3, 3]


@pytest.fixture(scope="module")
def policy():
    torch.set_num_threads(1)
    return language_model()


def random_answers(lengths, seed, scale=0.3):
    """(new, old, advantages) in float64."""
    generator = torch.Generator().manual_seed(seed)
    old = -5 * torch.rand(sum(lengths), dtype=torch.float64, generator=generator)
    new = old + scale * torch.randn(sum(lengths), dtype=torch.float64, generator=generator)
    return new.requires_grad_(), old, torch.randn(len(lengths), dtype=torch.float64, generator=generator)


lengths_of_answers = st.lists(st.integers(1, 7), min_size=1, max_size=6)
seeds = st.integers(0, 10_000)


@settings(deadline=None, max_examples=50)
@given(lengths_of_answers, seeds)
def test_the_ratio_is_the_geometric_mean_of_the_token_ratios(lengths, seed):
    new, old, _ = random_answers(lengths, seed)
    ratios = np.exp((new - old).detach().numpy())
    expected = [np.prod(part) ** (1 / len(part)) for part in np.split(ratios, np.cumsum(lengths)[:-1])]
    np.testing.assert_allclose(sequence_ratios(new, old, lengths).detach(), expected)


@settings(deadline=None, max_examples=50)
@given(lengths_of_answers, seeds)
def test_the_gradient_is_the_published_one_and_none_where_an_answer_is_clipped(lengths, seed):
    """GSPO, equation 10: s A / |y| for every token of an answer, over the number of answers."""
    new, old, advantages = random_answers(lengths, seed)
    ratios = sequence_ratios(new, old, lengths).detach()
    clipped = ((ratios > 1.3) & (advantages > 0)) | ((ratios < 0.9) & (advantages < 0))
    per_answer = torch.where(clipped, 0, ratios * advantages) / torch.tensor(lengths) / len(lengths)
    found = gspo_loss(new, old, lengths, advantages, WIDE, len(lengths))
    found.loss.backward()
    torch.testing.assert_close(new.grad, -per_answer.repeat_interleave(torch.tensor(lengths)))
    assert found.sums["clipped_low"] + found.sums["clipped_high"] == clipped.sum()


@settings(deadline=None, max_examples=50)
@given(lengths_of_answers, seeds)
def test_the_gradient_is_that_of_the_token_form(lengths, seed):
    """GSPO, equations 13 and 14: the ratio enters by its value, every token's log-probability by its gradient."""
    new, old, advantages = random_answers(lengths, seed, scale=0.02)  # nothing is clipped
    expected = 0
    for log_p, was, advantage in zip(new.split(lengths), old.split(lengths), advantages, strict=True):
        token_ratios = (log_p - was).mean().exp().detach() * (log_p - log_p.detach()).exp()
        expected = expected - (token_ratios * advantage).mean() / len(lengths)
    found = gspo_loss(new, old, lengths, advantages, WIDE, len(lengths)).loss
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, new)[0] for loss in (found, expected)))


def test_gradients_are_those_of_finite_differences():
    new, old, advantages = random_answers([3, 1, 5, 2], seed=0)
    weights = torch.rand(4, dtype=torch.float64)

    def loss(log_probabilities):
        return gspo_loss(log_probabilities, old, [3, 1, 5, 2], advantages, WIDE, 4, weights_S=weights).loss

    assert torch.autograd.gradcheck(loss, [new])


@pytest.mark.parametrize("epsilons", [(3e-4, 4e-4), (0.1, 0.3), (0.02, 0.05)])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_gradients_and_statistics_are_those_of_trl(policy, epsilons, weighted):
    """TRL's GRPO trainer with sequence-level ratios, ``loss_type="grpo"`` and no KL term, padded on both sides."""
    states, targets = answer_states(policy, PROMPTS, ANSWERS)
    scores = token_scores(states, policy.lm_head, targets, 4)
    torch.manual_seed(0)
    old = scores.log_probabilities.detach() + 0.1 * torch.randn(len(targets))
    advantages = group_advantages(REWARDS, GROUPS)
    weights = torch.rand(len(ANSWERS)) * 2 if weighted else None
    expected, metrics = trl_gspo_loss(policy, PROMPTS, ANSWERS, advantages, old.split(LENGTHS), epsilons, weights)
    objective = GspoObjective(epsilon_low=epsilons[0], epsilon_high=epsilons[1])
    found = gspo_loss(
        scores.log_probabilities,
        old,
        LENGTHS,
        advantages,
        objective,
        len(ANSWERS),
        weights_S=weights,
        entropies_M=scores.entropies,
    )
    torch.testing.assert_close(found.loss, expected)
    parameters = list(policy.parameters())
    gradients = torch.autograd.grad(found.loss, parameters), torch.autograd.grad(expected, parameters)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    sums = {name: value.item() for name, value in found.sums.items()}
    assert sums["entropy"] / sums["tokens"] == pytest.approx(metrics["entropy"], rel=1e-4)
    assert sums["clipped_low"] / sums["answers"] == pytest.approx(metrics["clip_ratio/low_mean"])
    assert sums["clipped_high"] / sums["answers"] == pytest.approx(metrics["clip_ratio/high_mean"])
    assert sums["ratio"] == pytest.approx(found.ratios.sum().item())


def test_without_an_update_since_the_rollout_the_ratios_are_one_and_the_gradient_is_that_of_reinforce():
    new, _, advantages = random_answers(LENGTHS, seed=2)
    found = gspo_loss(new, None, LENGTHS, advantages, PUBLISHED, 6)
    reinforce = -sum(part.mean() * a for part, a in zip(new.split(LENGTHS), advantages, strict=True)) / 6
    assert (found.ratios == 1).all()
    torch.testing.assert_close(*(torch.autograd.grad(loss, new)[0] for loss in (found.loss, reinforce)))


@pytest.mark.parametrize(
    ("ratio", "advantage", "trains", "value"),
    [
        (1.2, 1.0, True, 1.2),
        (1.4, 1.0, False, 1.3),
        (0.7, 1.0, True, 0.7),
        (0.95, -1.0, True, -0.95),
        (0.8, -1.0, False, -0.9),
        (1.4, -1.0, True, -1.4),
    ],
)
def test_each_side_is_clipped_at_its_own_epsilon_and_only_where_clipping_lowers_the_gain(
    ratio, advantage, trains, value
):
    new = torch.full((3,), np.log(ratio), dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([advantage], dtype=torch.float64)
    found = gspo_loss(new, torch.zeros_like(new), [3], advantages, WIDE, 1)
    found.loss.backward()
    assert -found.loss.item() == pytest.approx(value)
    assert bool((new.grad != 0).all()) == trains


@settings(deadline=None, max_examples=50)
@given(lengths_of_answers, seeds, st.integers(2, 4))
def test_an_answer_that_repeats_itself_has_the_same_ratio_and_the_same_weight(lengths, seed, times):
    new, old, advantages = random_answers(lengths, seed)
    longer = [length * times for length in lengths]

    def repeated(x):
        return torch.cat([part.repeat(times) for part in x.split(lengths)])

    short = gspo_loss(new, old, lengths, advantages, WIDE, 3).loss
    long = gspo_loss(repeated(new), repeated(old), longer, advantages, WIDE, 3).loss
    torch.testing.assert_close(long, short)


@settings(deadline=None, max_examples=50)
@given(lengths_of_answers, seeds, st.integers(1, 5))
def test_micro_batches_and_ranks_add_up_to_the_step(lengths, seed, cut):
    new, old, advantages = random_answers(lengths, seed)
    whole = gspo_loss(new, old, lengths, advantages, WIDE, len(lengths))
    tokens = sum(lengths[:cut])
    parts = [
        gspo_loss(new[t], old[t], lengths[s], advantages[s], WIDE, len(lengths))
        for t, s in (
            (slice(None, tokens), slice(None, cut)),
            (slice(tokens, None), slice(cut, None)),
        )
        if lengths[s]
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    for name, value in whole.sums.items():
        assert sum(part.sums[name] for part in parts).item() == pytest.approx(value.item()), name


def test_advantages_are_in_units_of_the_standard_deviation_that_trl_takes():
    from trl.trainer.utils import nanstd

    grouped = REWARDS.view(2, 3)
    expected = (grouped - grouped.mean(1, keepdim=True)) / nanstd(grouped, dim=1, keepdim=True)
    torch.testing.assert_close(group_advantages(REWARDS, GROUPS), expected.flatten())


rewards_of_a_group = st.lists(st.integers(0, 10).map(lambda x: x / 10), min_size=1, max_size=8)


@settings(deadline=None, max_examples=50)
@given(st.lists(rewards_of_a_group, min_size=1, max_size=4))
def test_groups_of_any_size_are_normalised_each_by_itself(groups):
    found = group_advantages(
        torch.tensor([reward for group in groups for reward in group]), [len(group) for group in groups]
    )
    for group, advantages in zip(groups, found.split([len(group) for group in groups]), strict=True):
        if len(set(group)) == 1:
            assert advantages.tolist() == [0.0] * len(group)
        else:
            expected = (np.array(group) - np.mean(group)) / np.std(group, ddof=1)
            np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(rewards_of_a_group, st.floats(0.1, 10), st.floats(-5, 5))
def test_neither_the_scale_nor_the_origin_of_the_rewards_matters(group, scale, origin):
    rewards = torch.tensor(group, dtype=torch.float64)
    moved = group_advantages(rewards * scale + origin, [len(group)])
    torch.testing.assert_close(moved, group_advantages(rewards, [len(group)]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rewards", [[0.1] * 3, [0.1 + 0.2, 0.3, 0.3], [1.0] * 8, [0.0] * 2, [0.7]])
def test_a_degenerate_group_gives_no_loss_and_no_gradient(rewards):
    lengths = [2] * len(rewards)
    new, old, _ = random_answers(lengths, seed=0)
    advantages = group_advantages(torch.tensor(rewards, dtype=torch.float64), [len(rewards)])
    found = gspo_loss(new, old, lengths, advantages, PUBLISHED, len(rewards))
    found.loss.backward()
    assert found.loss.item() == 0
    assert (new.grad == 0).all()


def test_an_empty_answer_moves_nothing_and_leaves_the_others_alone():
    new, old, advantages = random_answers([2, 0, 3], seed=1)
    found = gspo_loss(new, old, [2, 0, 3], advantages, PUBLISHED, 3)
    others = gspo_loss(new, old, [2, 3], advantages[[0, 2]], PUBLISHED, 3)
    assert found.ratios[1] == 1
    torch.testing.assert_close(*(torch.autograd.grad(x.loss, new)[0] for x in (found, others)))


def test_different_numbers_of_answers_are_refused():
    new, old, advantages = random_answers([2, 3], seed=1)
    with pytest.raises(ValueError, match="differ in shape"):
        gspo_loss(new, old, [2, 3], advantages[:, None], PUBLISHED, 2)
    with pytest.raises(ValueError, match="differ in shape"):
        gspo_loss(new, old, [2, 3], advantages, PUBLISHED, 2, weights_S=torch.ones(1))


@settings(deadline=None, max_examples=50)
@given(lengths_of_answers, seeds, st.floats(0.5, 5))
def test_importance_weights_are_the_truncated_ratios_of_whole_answers(lengths, seed, cap):
    sampler, old, _ = random_answers(lengths, seed)
    found = truncated_importance(old, sampler, lengths, cap)
    difference = (old - sampler).detach().numpy()
    ratios = np.array([np.exp(part.sum()) for part in np.split(difference, np.cumsum(lengths)[:-1])])
    assume(np.abs(ratios - cap).min() > 1e-9)
    np.testing.assert_allclose(found.weights, np.minimum(ratios, cap))
    assert not found.weights.requires_grad
    assert found.sums["truncated"] == (ratios > cap).sum()
    assert found.sums["mismatch"].item() == pytest.approx(np.abs(difference).sum())


def test_a_sampler_that_agrees_with_the_trainer_is_not_corrected():
    new, old, advantages = random_answers([2, 3], seed=1)
    weights = truncated_importance(old, old, [2, 3], cap=2.0).weights
    corrected = gspo_loss(new, old, [2, 3], advantages, WIDE, 2, weights_S=weights).loss
    assert torch.equal(corrected, gspo_loss(new, old, [2, 3], advantages, WIDE, 2).loss)


def test_correction_makes_the_mean_over_the_samplers_answers_that_of_the_old_policy():
    """One token, three outcomes: sum over the sampler's probabilities of weight x gain is the old policy's mean."""
    sampler, old, gains = (torch.tensor(x).double() for x in ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [1.0, -2.0, 3.0]))
    weights = truncated_importance(old.log(), sampler.log(), [1, 1, 1], cap=100.0).weights
    torch.testing.assert_close((sampler * weights * gains).sum(), (old * gains).sum())


def test_images_of_neighbours_change_neither_loss_nor_gradient_and_the_vision_tower_trains():
    """No image, one of one tile, and two of which one has three tiles: side by side, and each alone."""
    network, processor = random_model(byte_tokenizer())
    rng = np.random.default_rng(0)
    images = [[], [picture(rng)], [picture(rng), picture(rng, 2, 1)]]
    samples = [processor.sample(question_row(f"row-{i}", given, "abc"[i] * (i + 1))) for i, given in enumerate(images)]
    assert [sample.units for sample in samples] == [0, 1, 4]
    advantages = group_advantages(torch.tensor([0.0, 0.2, 1.0]), [3])

    def step(batches):
        network.zero_grad()
        total, first = 0.0, 0
        for batch in batches:
            answers = slice(first, first + len(batch.row_ids))
            first = answers.stop
            lengths = [sum(sample.trained) for sample in samples[answers]]
            states = network.hidden(batch.inputs).states
            log_p = token_log_probabilities(states, network.head, batch.targets, 2)
            old = log_p.detach() + 0.01 * torch.cos(batch.targets.double()).float()
            loss = gspo_loss(log_p, old, lengths, advantages[answers], WIDE, len(samples)).loss
            loss.backward()
            total += loss.item()
        return total, [None if p.grad is None else p.grad.clone() for p in network.parameters()]

    eos = processor.eos_token_id
    loss, together = step([pad(samples, "token", eos)])
    alone_loss, alone = step([pad([sample], "token", eos) for sample in samples])
    assert loss == pytest.approx(alone_loss, rel=1e-4)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4)
    assert any(float(p.grad.abs().max()) > 1e-4 for p in network.parts().parameters("vision") if p.grad is not None)
