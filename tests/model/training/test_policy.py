"""Learning from rollouts: what a step takes, what is recorded, and answers that are no ordinary ones."""

import math

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from model.data.errors import InputError
from model.flash.build import build_model
from model.objectives.config import GspoObjective
from model.objectives.gspo import Correction, GspoLoss
from model.training.policy_memory import PolicyMemory
from model.training.policy_rollouts import Judgement
from model.training.policy_store import RolloutStore
from tests.model.training.policy_runs import Recited, babble, queries, rollout, run, training
from tests.tiny import byte_tokenizer, tiny_config
from tests.tiny_flash import random_flash_model


def of_tokens(judge):
    """A reward function of the token ids of each answer and its number."""
    return lambda answers: [judge(response.token_ids, number) for number, (_, response) in enumerate(answers)]


def unequal(_token_ids, number):
    """No answer's reward is the mean of its group."""
    return Judgement(float(number**2), accuracy=float(number % 2), well_formed=1.0)


_SLOW = pytest.mark.slow


@pytest.mark.parametrize("micro_batch_size", [pytest.param(1, marks=_SLOW), 3, pytest.param(4, marks=_SLOW)])
def test_how_a_step_is_cut_into_forward_passes_changes_no_loss(tmp_path, micro_batch_size):
    """A group of four in one tree, in two, or each answer alone; two of the groups lie in each step."""
    plan, settings = rollout(prompts=4, kept_together=4), {"batch_size": 8, "steps": 4, "micro_batch_size": 8}
    _, whole, _ = run(tmp_path / "whole", config=training(**settings), engine=Recited(babble), plan=plan)
    cut = training(**settings | {"micro_batch_size": micro_batch_size})
    _, parts, _ = run(tmp_path / "parts", config=cut, engine=Recited(babble), plan=plan)
    for one, other in zip(whole.history, parts.history, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
        assert other["ratio"] == pytest.approx(one["ratio"], abs=1e-5)
        assert other["tokens"] >= one["tokens"], "a prompt is computed once for the answers of a forward pass"
    assert (parts.history[0]["tokens"] > whole.history[0]["tokens"]) == (micro_batch_size < 4)


def test_the_first_step_after_a_rollout_has_ratios_of_one_and_the_next_moves_on(tmp_path):
    _, state, _ = run(tmp_path, config=training(steps=4), engine=Recited(babble))
    first, second, third, _ = state.history
    for record in (first, third):
        assert record["ratio"] == 1 and record["clipped_low"] == record["clipped_high"] == 0
        assert record["ratio_histogram/07"] == 1, "all in the bin around 1"
    assert second["ratio"] != 1
    bins = [value for name, value in second.items() if name.startswith("ratio_histogram/")]
    assert len(bins) == 15 and sum(bins) == pytest.approx(1)


def test_an_iteration_of_one_step_asks_for_no_old_log_probabilities(tmp_path):
    run(tmp_path, config=training(steps=1, batch_size=8), engine=Recited(babble))
    assert RolloutStore(tmp_path / "rollouts").load_old(0) is None
    run(tmp_path / "two", config=training(steps=1), engine=Recited(babble))
    old = RolloutStore(tmp_path / "two" / "rollouts").load_old(0)
    groups = RolloutStore(tmp_path / "two" / "rollouts").load(0)
    lengths = {slot: len(groups[1].answers[slot - 4]) for slot in range(4, 8)}
    assert {slot: len(values) for slot, values in old.items()} == lengths, "of the answers of the second step"


def test_equal_rewards_teach_nothing_and_divide_by_nothing(tmp_path):
    network, processor = build_model(tiny_config(), byte_tokenizer(), seed=0)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    config = training(steps=3, weight_decay=0.0)
    equal = of_tokens(lambda _ids, _number: Judgement(0.3))
    run(tmp_path, config=config, engine=Recited(babble), reward=equal, network=network, processor=processor)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_what_is_recorded_of_equal_rewards(tmp_path):
    equal = of_tokens(lambda _ids, _number: Judgement(0.3))
    _, state, memory = run(tmp_path, config=training(steps=2), engine=Recited(babble), reward=equal)
    assert [record["loss"] for record in state.history] == [0.0, 0.0]
    assert state.history[0]["degenerate"] == 1 and state.history[0]["learning"] == 0
    assert "ratio" not in state.history[0]
    assert memory.counts == {"answers": 8, "failed": 0, "cut": 0, "degenerate": 8}


def test_answers_without_a_reward_are_left_out_counted_and_named(tmp_path):
    """The losses are those of groups that never had them, and the mean is over the answers that are left."""

    def judge(token_ids, number):
        return Judgement(None, failure="over 2 s") if number in (1, 6) else unequal(token_ids, number)

    plan, config = rollout(kept_together=2), training(steps=1, batch_size=8)
    _, state, memory = run(tmp_path / "a", config=config, plan=plan, engine=Recited(babble), reward=of_tokens(judge))
    (record,) = state.history
    assert record["failed"] == 2 and record["learning"] == 6
    assert memory.counts["failed"] == 2
    assert len(memory.failures) == 2 and all(line.endswith(": over 2 s") for line in memory.failures)
    assert record["reward"] == pytest.approx(np.mean([0, 4, 9, 16, 25, 49]))

    def other(token_ids, number):
        return Judgement(None, failure="") if number in (1, 6) else unequal(token_ids, number)

    def strange(row_id, number):
        return [9, 9, 9] if (row_id, number) in lost else babble(row_id, number)

    groups = RolloutStore(tmp_path / "a" / "rollouts").load(0)
    names = [queries()[groups[query].row]["id"] for query in range(2)]
    lost = {(names[0], 1), (names[1], 2)}
    _, again, _ = run(tmp_path / "b", config=config, plan=plan, engine=Recited(strange), reward=of_tokens(other))
    assert again.history[0]["grad_norm"] == record["grad_norm"], "what they say has no influence"


def test_a_step_without_any_reward_is_a_step_without_a_gradient(tmp_path):
    none = of_tokens(lambda _ids, _number: Judgement(None, failure="hung"))
    _, state, memory = run(tmp_path, config=training(steps=2), engine=Recited(babble), reward=none)
    assert [record["grad_norm"] for record in state.history] == [0.0, 0.0]
    assert memory.counts["failed"] == 8 and "reward" not in state.history[0]


def test_a_group_that_has_one_answer_left_has_nothing_to_compare(tmp_path):
    lonely = of_tokens(lambda _ids, number: Judgement(1.0) if number == 0 else Judgement(None, failure="hung"))
    _, state, _ = run(tmp_path, config=training(steps=1, batch_size=8), engine=Recited(babble), reward=lonely)
    assert state.history[0]["loss"] == 0 and state.history[0]["degenerate"] == 1


def test_empty_answers_count_and_have_no_gradient(tmp_path):
    """An answer of no token at all, as a server may give, beside three that have some."""
    quiet = Recited(lambda row_id, number: [] if number == 0 else babble(row_id, number))
    _, state, _ = run(
        tmp_path, config=training(steps=2), engine=quiet, reward=of_tokens(unequal), plan=rollout(kept_together=2)
    )
    assert all(math.isfinite(record["loss"]) for record in state.history)
    assert [record["learning"] for record in state.history] == [3, 3]


def test_answers_that_are_cut_are_rewarded_or_left_out(tmp_path):
    long = Recited(lambda row_id, number: [5] * 6 if number == 3 else babble(row_id, number)[:5])
    settings = {"config": training(steps=1, batch_size=8), "engine": long, "reward": of_tokens(unequal)}
    _, state, memory = run(tmp_path / "in", **settings, plan=rollout(kept_together=2))
    assert state.history[0]["cut"] == 0.25 and state.history[0]["learning"] == 8
    _, state, memory = run(tmp_path / "out", **settings, plan=rollout(kept_together=2, cut="left_out"))
    assert state.history[0]["cut"] == 0.25 and state.history[0]["learning"] == 6
    assert memory.counts["cut"] == 2 and state.history[0]["failed"] == 0


def test_long_queries_are_left_out_and_counted(tmp_path):
    rows = queries(6)
    for row in rows[::2]:
        row["messages"][0]["content"] += "a" * 300
    engine = Recited(babble)
    _, _, memory = run(tmp_path, rows=rows, plan=rollout(max_prompt_tokens=300), engine=engine)
    assert memory.left_out == 3
    assert {row_id for asked in engine.asked for row_id in asked} <= {"q1", "q3", "q5"}
    with pytest.raises(InputError, match=r"no query has at most 20 tokens \(rollout\.max_prompt_tokens\)"):
        run(tmp_path / "none", rows=rows, plan=rollout(max_prompt_tokens=20), engine=engine)


def test_a_query_of_just_as_many_tokens_is_kept(tmp_path, tokenizer):
    _, processor = build_model(tiny_config(), tokenizer, seed=0)
    rows = queries(4)
    longest = max(len(processor.question(row).input_ids) for row in rows)
    _, _, memory = run(tmp_path, rows=rows, plan=rollout(max_prompt_tokens=longest), engine=Recited(babble))
    assert memory.left_out == 0
    _, _, memory = run(tmp_path / "b", rows=rows, plan=rollout(max_prompt_tokens=longest - 1), engine=Recited(babble))
    assert memory.left_out == 1


def test_queries_that_leave_no_room_in_the_context_are_left_out_before_anything_is_sampled(tmp_path, tokenizer):
    network, processor = build_model(tiny_config(), tokenizer, seed=0)
    rows = queries(4)
    network.config.text_config.max_position_embeddings = max(len(processor.question(row).input_ids) for row in rows)
    _, _, memory = run(tmp_path, rows=rows, network=network, processor=processor)
    assert memory.left_out == 1


def test_a_row_that_is_asked_twice_in_an_iteration_gets_other_answers(tmp_path):
    run(tmp_path, rows=queries(1), config=training(steps=1))
    groups = RolloutStore(tmp_path / "rollouts").load(0)
    assert groups[0].row == groups[1].row
    assert [a.tolist() for a in groups[0].answers] != [a.tolist() for a in groups[1].answers]


def test_importance_weights_are_capped(tmp_path):
    """A sampler that found its answers far less likely: their weights are all cut at the cap."""
    config = training(steps=1, batch_size=8, grad_clip=100.0)
    runs = {}
    for cap in (None, 3.0):
        engine = Recited(babble, log_probability=-50.0)
        _, state, _ = run(tmp_path / str(cap), config=config, engine=engine, plan=rollout(importance_cap=cap))
        (runs[cap],) = state.history
    assert runs[3.0]["grad_norm"] == pytest.approx(3 * runs[None]["grad_norm"], rel=1e-5)
    assert runs[3.0]["importance"] == 3 and runs[3.0]["truncated"] == 1
    assert runs[None]["mismatch"] == pytest.approx(50 - 5.5, abs=0.5), (
        "a random network finds every token about as likely"
    )


def test_the_network_that_samples_agrees_with_itself_as_it_trains(tmp_path):
    _, state, _ = run(tmp_path, config=training(steps=4))
    assert all(record["mismatch"] < 1e-5 for record in state.history if record["learning"])


def test_a_record_tells_the_families_apart(tmp_path):
    def judge(answers):
        return [Judgement(float(row["task"] == "read"), accuracy=0.5, well_formed=0.25) for row, _ in answers]

    plan = rollout(prompts=4, kept_together=4)
    _, state, _ = run(
        tmp_path,
        rows=queries(4),
        config=training(steps=1, batch_size=16),
        engine=Recited(babble),
        reward=judge,
        plan=plan,
    )
    (record,) = state.history
    expected = {
        "reward/read": 1,
        "reward/count": 0,
        "reward": 0.5,
        "accuracy/read": 0.5,
        "accuracy": 0.5,
        "format": 0.25,
    }
    assert {name: record[name] for name in expected} == expected
    lengths = [[len(babble(f"q{query}", number)) for number in range(4)] for query in range(4)]
    assert record["length"] == pytest.approx(np.mean(lengths))
    assert record["length/read"] == pytest.approx(np.mean(lengths[::2]))
    assert record["length/count"] == pytest.approx(np.mean(lengths[1::2]))


@pytest.mark.parametrize("micro_batch_size", [1, 8])
def test_families_make_up_the_whole_wherever_their_answers_lie(tmp_path, micro_batch_size):
    """Of the answers that learn: entropies weigh by tokens, clipped answers by answers."""

    def judge(answers):
        return [
            Judgement(float(number**2)) if row["task"] == "read" or number % 4 else Judgement(None, failure="hung")
            for number, (row, _) in enumerate(answers)
        ]

    tight = GspoObjective(epsilon_low=1e-9, epsilon_high=1e-9)
    config = training(steps=2, batch_size=8, micro_batch_size=micro_batch_size)
    settings = {"config": config, "objective": tight, "plan": rollout(prompts=4, kept_together=4)}
    _, state, _ = run(tmp_path, rows=queries(4), engine=Recited(babble), reward=judge, **settings)
    groups = RolloutStore(tmp_path / "rollouts").load(0)
    for record, step in zip(state.history, ((0, 1), (2, 3)), strict=True):
        answers, tokens = {"read": 0, "count": 0}, {"read": 0, "count": 0}
        for group in (groups[query] for query in step):
            family, known = queries(4)[group.row]["task"], ~np.isnan(group.rewards)
            answers[family] += int(known.sum())
            tokens[family] += sum(len(answer) for answer, k in zip(group.answers, known, strict=True) if k)
        learning = {family for family, number in answers.items() if number}
        entropy = sum(record[f"entropy/{family}"] * tokens[family] for family in learning)
        clipped = sum(record[f"clipped/{family}"] * answers[family] for family in learning)
        assert record["entropy"] == pytest.approx(entropy / sum(tokens.values()))
        assert record["clipped_low"] + record["clipped_high"] == pytest.approx(clipped / sum(answers.values()))
    assert clipped > 0


def test_clipping_is_recorded_as_shares_of_the_answers_that_learn(tmp_path):
    tight = GspoObjective(epsilon_low=1e-6, epsilon_high=1e-6)
    _, state, _ = run(tmp_path, config=training(steps=2), engine=Recited(babble), objective=tight)
    record = state.history[1]
    assert record["clipped_low"] + record["clipped_high"] > 0


def test_ratios_of_a_gpu_are_counted_where_the_histogram_lies():
    """Tensors that pretend: their devices are checked as real ones are, and they hold no numbers."""
    memory = PolicyMemory()
    answer = {"reward": 1.0, "accuracy": 1.0, "format": 1.0, "length": 3, "cut": False, "degenerate": False}
    memory.begin([answer | {"family": "read", "failure": ""}] * 4)
    sums = dict.fromkeys(("answers", "ratio", "clipped_low", "clipped_high", "tokens", "entropy"), 1.0)
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
        ratios = torch.ones(4, device="cuda")
        found = GspoLoss(ratios.sum(), ratios, ratios > 1, ratios, sums)
        correction = Correction(ratios, dict.fromkeys(("mismatch", "weight", "truncated"), 0.0))
        for _ in range(2):
            memory.add(found, correction, [0, 1, 2, 3], [1, 1, 1, 1])
        record = memory.step_done(lambda values: [1.0] * len(values))
    assert record["ratio_histogram/07"] == 1


def test_a_batch_that_does_not_divide_a_rollout_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"batch_size 3 does not divide 8 answers of a rollout"):
        run(tmp_path, config=training(batch_size=3, micro_batch_size=3), engine=Recited(babble))


@_SLOW
def test_rewards_rise(tmp_path):
    """From text alone, in bfloat16: answers get more even tokens when those are rewarded."""
    rows = [row for row in queries(8) if not row["media"]]
    config = training(steps=24, batch_size=64, micro_batch_size=64, learning_rate=5e-3, precision="bfloat16")
    _, state, _ = run(tmp_path, rows=rows, config=config, plan=rollout(prompts=2, responses=32, max_new_tokens=4))
    rewards = [record["reward"] for record in state.history]
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 0.2
    assert state.history[-1]["entropy"] < state.history[0]["entropy"]


def test_the_vision_tower_stays_as_it_is_when_it_is_not_to_train(tmp_path):
    network, processor = build_model(tiny_config(), byte_tokenizer(), seed=0)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    config = training(steps=2, train="without_vision")
    run(tmp_path, config=config, engine=Recited(babble), network=network, processor=processor)
    tower = {id(p) for p in network.parts().parameters("vision")}
    for name, parameter in network.named_parameters():
        if "norm" in name or "projector" in name:
            assert torch.equal(parameter, before[name]) == (id(parameter) in tower), name


@_SLOW
def test_adapters_learn_from_the_answers_of_the_adapted_network(tmp_path):
    config = training(steps=4, lora={"rank": 2, "targets": ["language", "vision"]}, learning_rate=1e-2)
    _, state, _ = run(tmp_path, config=config)
    learned = [record for record in state.history if record["learning"]]
    assert learned and all(record["mismatch"] < 1e-5 for record in learned)
    assert any(record["grad_norm"] > 0 for record in learned)


def test_a_network_that_routes_answers_from_whole_tiles_as_it_is_trained_on_them(tmp_path, tokenizer):
    network, processor = random_flash_model(tokenizer)
    decision = network.decision
    rows = [row for row in queries(4) if row["media"]]
    _, state, _ = run(tmp_path, config=training(steps=2), rows=rows, network=network, processor=processor)
    assert any(record["learning"] for record in state.history)
    assert all(record["mismatch"] < 1e-4 for record in state.history if record["learning"])
    assert network.decision is decision is not None
