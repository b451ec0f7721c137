"""Process labels: shares of right continuations, and what is left out."""

import pytest

from model.critic.labels import LabelSettings, critic_rows, label_steps
from model.data.schema import check_row
from model.training.rollout import NetworkSampler, Response
from model.training.sampling import Sampling
from tests.tiny import picture, question_row

SETTINGS = LabelSettings(solutions=3, continuations=4, sampling=Sampling(max_new_tokens=8))


class ScriptedEngine:
    """Gives the answers that are written for a prefix, and remembers what it was asked."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def sample(self, queries, count, sampling, seed):
        self.asked += [(query.row["id"], query.prefix, count) for query in queries]
        return [
            [Response([1], [0.0], self.answers[query.prefix][number], "stop") for number in range(count)]
            for query in queries
        ]

    def refresh(self, network):
        raise AssertionError("labels are made with the weights that are there")


def judged(pairs):
    return [answer.endswith(row["answers"][0]) for row, answer in pairs]


def test_a_label_is_the_share_of_right_continuations_of_what_was_written_so_far():
    row = question_row("r1", [], "8", question="3 + 5?")
    engine = ScriptedEngine({"3 and 5.\n\n": ["8", "8", "9", "8"], "3 and 5.\n\nThat is 7.\n\n": ["7", "", "9", "no"]})
    labelled = label_steps(engine, [(row, "3 and 5.\n\nThat is 7.\n\n7"), (row, "8")], judged, SETTINGS)
    assert labelled == [
        [
            {"text": "3 and 5.", "label": 0.75},
            {"text": "That is 7.", "label": 0.0},
            {"text": "7", "label": 0.0},
        ],
        [{"text": "8", "label": 1.0}],
    ]
    assert [count for _, _, count in engine.asked] == [4, 4]


def test_solutions_become_rows_and_what_is_left_out_is_said_why():
    rows = [question_row("r1", [], "8", question="3 + 5?"), question_row("r2", [], "1", question="1?")]
    rows[1]["messages"] = [*rows[1]["messages"], *rows[1]["messages"]]
    engine = ScriptedEngine({"": ["so\n\n8", "so\n\n8", "<image>"], "so\n\n": ["9", "8", "9", "9"]})
    made, rejects = critic_rows(engine, rows, judged, SETTINGS)
    assert [row["id"] for row in made] == ["r1/solution-0"]
    assert [step["label"] for step in made[0]["steps"]] == [0.25, 1.0]
    assert {reject["id"]: reject["reason"] for reject in rejects} == {
        "r1/solution-1": "the solution repeats another one",
        "r1/solution-2": "an answer holds the placeholder <image>",
        "r2": "row r2: a critic judges answers to one question; this row has 2",
    }


def test_what_could_not_be_judged_is_neither_right_nor_wrong():
    """A scorer hangs at "hm"."""

    def judged_in_part(pairs):
        return [None if answer.endswith("hm") else answer.endswith(row["answers"][0]) for row, answer in pairs]

    row = question_row("r1", [], "8", question="3 + 5?")
    engine = ScriptedEngine(
        {"": ["a\n\nb\n\n8", "c\n\nhm", "d\n\n8"], "a\n\n": ["8", "hm", "9", "hm"]}
        | {"a\n\nb\n\n": ["8", "8", "8", "hm"], "c\n\n": ["8"] * 4, "d\n\n": ["hm"] * 4}
    )
    made, rejects = critic_rows(engine, [row], judged_in_part, SETTINGS)
    assert [[step["label"] for step in row["steps"]] for row in made] == [[0.5, 1.0, 1.0]]
    assert {reject["id"]: reject["reason"] for reject in rejects} == {
        "r1/solution-1": "the solution could not be judged",
        "r1/solution-2": "no continuation of step 1 could be judged",
    }


def test_a_reserved_word_that_a_model_spelled_is_never_begun_with():
    engine = ScriptedEngine({"": ["<IMG_CONTEXT>\n\n8", "<|im_end|>\n\n8", "8"]})
    made, rejects = critic_rows(engine, [question_row("r1", [], "8")], judged, SETTINGS)
    assert [row["id"] for row in made] == ["r1/solution-2"]
    reasons = [f"a message holds the reserved word {word}" for word in ("<IMG_CONTEXT>", "<|im_end|>")]
    assert [reject["reason"] for reject in rejects] == reasons
    assert [prefix for _, prefix, _ in engine.asked] == [""]


def test_an_empty_solution_is_left_out():
    made, rejects = critic_rows(ScriptedEngine({"": ["", " ", "8"]}), [question_row("r1", [], "8")], judged, SETTINGS)
    assert [row["id"] for row in made] == ["r1/solution-2"]
    assert [reject["reason"] for reject in rejects] == ["the solution is empty"] * 2


def test_a_network_labels_its_own_solutions_the_same_way_twice(tiny_model, rng):
    network, processor = tiny_model
    rows = [question_row(f"r{i}", [picture(rng)], "a", question="Which?") for i in range(2)]
    settings = LabelSettings(solutions=2, continuations=2, sampling=Sampling(max_new_tokens=4))
    right = [lambda pairs: [len(answer) % 2 == 0 for _, answer in pairs]] * 2
    first, second = (critic_rows(NetworkSampler(network, processor), rows, one, settings) for one in right)
    assert first == second
    assert first[0] and all(check_row(row) is None for row in first[0])


@pytest.mark.parametrize("wrong", [{"solutions": 0}, {"continuations": 0}, {"max_steps": 0}, {"threshold": 1.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        LabelSettings(**wrong)
