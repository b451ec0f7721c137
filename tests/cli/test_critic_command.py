"""``fovea critic data``: a dataset that a critic is trained on, made in parts that survive a kill."""

import json

import pytest
from typer.testing import CliRunner

from cli import critic
from cli.main import app
from model.critic.labels import LabelSettings
from model.data.errors import InputError
from model.data.schema import check_row, scorer
from model.data.shards import open_dataset, write_dataset
from model.training.rollout import Response
from model.training.sampling import Sampling
from scoring.judge import Judges, Verdict
from tests.tiny import picture, question_row

SETTINGS = LabelSettings(solutions=2, continuations=2, sampling=Sampling(max_new_tokens=4))


class CountingEngine:
    """Answers 8 first and "so", then 9, second, whatever it is asked, and stops after so many calls."""

    def __init__(self, calls: int = 1000):
        self.calls = calls

    def sample(self, queries, count, sampling, seed):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return [[Response([1], [0.0], (r"\boxed{8}", "so\n\n9")[n % 2], "stop") for n in range(count)] for _ in queries]

    def refresh(self, network):
        raise AssertionError


def questions(count: int):
    return [question_row(f"r{index}", [], "8", question=f"{index} + 5?") for index in range(count)]


def test_the_command_makes_a_dataset_with_labels_and_verdicts(tiny_directory, tmp_path, rng):
    rows = [question_row(f"r{index}", [picture(rng)], "8", question="Which?") for index in range(3)]
    write_dataset(tmp_path / "rows", rows)
    options = ["--solutions", "2", "--continuations", "2", "--max-tokens", "4", "--limit", "2", "--think"]
    command = ["critic", "data", str(tmp_path / "rows"), str(tiny_directory), str(tmp_path / "made"), *options]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    made = list(open_dataset(tmp_path / "made", verify=True).rows())
    assert {row["id"].partition("/")[0] for row in made} == {"r0", "r1"}
    for row in made:
        assert check_row(row) is None
        verdicts = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        assert verdicts == ["+" if step["label"] > 0 else "-" for step in row["steps"]]
    assert not (tmp_path / "made.parts").exists()
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2 and "made: exists already" in again.stderr


def test_a_killed_run_continues_and_labels_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(critic, "_PART_ROWS", 2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert critic.label_dataset(whole, questions(5), CountingEngine(), SETTINGS, {}) == (10, 0)
    with pytest.raises(KeyboardInterrupt):
        critic.label_dataset(broken, questions(5), CountingEngine(3), SETTINGS, {})
    engine = CountingEngine(4)
    critic.label_dataset(broken, questions(5), engine, SETTINGS, {})
    assert engine.calls == 0
    payloads = [json.loads((place / "manifest.json").read_text())["payload_sha256"] for place in (whole, broken)]
    assert payloads[0] == payloads[1]
    labels = [[step["label"] for step in row["steps"]] for row in open_dataset(whole).rows()]
    assert labels[:2] == [[1.0], [0.5, 0.0]]


def test_parts_of_another_run_are_not_taken(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        critic.label_dataset(tmp_path / "made", questions(1), CountingEngine(0), SETTINGS, {"rows": "a"})
    with pytest.raises(InputError, match=r"made\.parts: left by a run with other rows, model or settings"):
        critic.label_dataset(tmp_path / "made", questions(1), CountingEngine(), SETTINGS, {"rows": "b"})


def test_a_row_that_cannot_be_judged_is_named(tmp_path):
    rows = questions(1)
    rows[0]["scorer"] = scorer("bleu")
    with pytest.raises(InputError, match="row r0: unknown scorer 'bleu'"):
        critic.label_dataset(tmp_path / "made", rows, CountingEngine(), SETTINGS, {})


def test_answers_that_no_scorer_could_judge_label_nothing_and_are_counted(tmp_path, monkeypatch, capsys):
    """The scorer of "so 9" hangs: once as a solution, once as a continuation of it."""

    def ask(_judges, requests):
        hung = Verdict(failed="its scorer took more than 2 s")
        return [hung if r.prediction.endswith("9") else Verdict(value=1.0, parsed=True) for r in requests]

    monkeypatch.setattr(Judges, "ask", ask)
    assert critic.label_dataset(tmp_path / "made", questions(1), CountingEngine(), SETTINGS, {}) == (1, 1)
    (reject,) = open_dataset(tmp_path / "made").rejects()
    assert (reject["id"], reject["reason"]) == ("r0/solution-1", "the solution could not be judged")
    told = "fovea: 2 answers could not be judged, and label nothing: row r0: its scorer took more than 2 s\n"
    assert capsys.readouterr().err.endswith(told)


def test_what_the_command_makes_trains_a_critic_in_the_step_sft(tiny_directory, tmp_path, rng):
    from components.context import StepContext
    from components.sft.config import SftConfig
    from components.sft.step import run
    from model.critic.critic import load_critic
    from model.training.config import TrainingConfig

    rows = [question_row("r0", [picture(rng)], "8", question="Which?")]
    critic.label_dataset(tmp_path / "made", rows, CountingEngine(), SETTINGS, {})
    training = TrainingConfig(learning_rate=1e-3, steps=1, batch_size=2, precision="float32", threads=1)
    places = {"rows": tmp_path / "made", "heldout": tmp_path / "made", "init": tiny_directory}
    context = StepContext(tmp_path / "state")
    result = run(SftConfig(training=training), **places, model=tmp_path / "critic", context=context)
    assert set(result.heldout) == {"critic"}
    (score,) = load_critic(tmp_path / "critic").scores(rows[0], ["8\n\n9"])
    assert len(score.steps) == 2 and 0 < score.score < 1
