"""The step ``gspo``: from queries and a model directory to a model directory, with what its rewards could not judge."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from pydantic import ValidationError

from components.gspo import step
from components.gspo.config import GspoConfig, RewardConfig
from components.gspo.step import run
from model.data.errors import InputError
from model.data.schema import scorer
from model.data.shards import open_dataset, write_dataset
from model.families.opening import load_network, load_processor
from model.objectives.config import GspoObjective
from model.training.config import PackingConfig, TrainingConfig
from model.training.policy_config import RolloutConfig, RolloutServer
from model.training.rollout import Query
from model.training.vllm_rollout import conversation

CONFIG = GspoConfig(
    training=TrainingConfig(learning_rate=1e-3, steps=2, batch_size=8, log_every=1, threads=1, precision="float32"),
    objective=GspoObjective(epsilon_low=3e-4, epsilon_high=4e-4),
    rollout=RolloutConfig(prompts=4, responses=4, max_new_tokens=64, max_prompt_tokens=256),
    # Random answers are never right: those that end by themselves lose less.
    reward=RewardConfig(soft_length=0),
    heldout_rows=1,
)


@pytest.fixture(scope="module")
def asked(digits, tmp_path_factory):
    """Four questions of the tiny corpus; two are scored as numbers, and the reference of one is none."""
    rows = [row for row in open_dataset(digits / "corpus").rows() if row["task"] == "read"][:4]
    for row, answer in zip(rows, ("no number", "7"), strict=False):
        row |= {"scorer": scorer("numeric"), "answers": [answer]}
    directory = tmp_path_factory.mktemp("asked") / "queries"
    write_dataset(directory, rows, shards=1, rejects=[])
    return directory, rows[0]["id"]


def test_a_model_learns_from_its_own_answers(asked, heldout, random_models, context, tmp_path):
    rows, broken = asked
    result = run(CONFIG, rows=rows, heldout=heldout, init=random_models[0], model=tmp_path / "model", context=context)
    assert result.numbers["answers"] == 16 and result.numbers["steps"] == 2
    assert 0 < result.numbers["answers_cut"] < 16
    assert result.numbers["answers_failed"] == len(result.values["reward_failures"]) == 4
    assert all(line.startswith(f"row {broken}: the row's scorer") for line in result.values["reward_failures"])
    assert set(result.heldout) == {"transcribe", "read", "count", "maximum", "locate"}
    assert any(record["learning"] for record in result.history)
    before, after = load_network(random_models[0]), load_network(tmp_path / "model")
    assert not torch.equal(before.head.weight, after.head.weight)


def test_a_scorer_that_can_judge_no_row_is_told_before_anything_is_sampled(asked, heldout, context, tmp_path):
    rows = list(open_dataset(asked[0]).rows())
    rows[2] |= {"scorer": scorer("bleu")}
    write_dataset(tmp_path / "rows", rows, shards=1, rejects=[])
    reason = f"row {rows[2]['id']}: the row's scorer: unknown scorer 'bleu'; so it is with all 1 rows of bleu"
    with pytest.raises(InputError, match=reason):
        run(
            CONFIG,
            rows=tmp_path / "rows",
            heldout=heldout,
            init=tmp_path / "no model",
            model=tmp_path / "model",
            context=context,
        )


class Server:
    """Stands for a vLLM server: reads prompts as the processor does, and answers with numbers."""

    calls: ClassVar[list[str]] = []
    made: ClassVar[list["Server"]] = []

    def __init__(self, url, processor):
        self.url, self.processor, self.open = url, processor, True
        self.made.append(self)

    def give_up(self):
        pass

    def close(self):
        self.open = False

    def post(self, path, body=None, **_query):
        assert self.open
        self.calls.append(path)
        if path == "/collective_rpc":
            assert load_network(Path(body["kwargs"]["weights_path"])) is not None
        if path != "/v1/chat/completions":
            return None
        asked = next(row for row in self.rows if conversation(Query(row)) == body["messages"])
        choices = []
        for index in range(body["n"]):
            ids = [(body["seed"] + index * place) % 100 + 20 for place in range(3 + index)]
            content = [{"logprob": -5.0} for _ in ids]
            choices.append(
                {"index": index, "token_ids": ids, "logprobs": {"content": content}, "finish_reason": "stop"}
            )
        return {"prompt_token_ids": self.processor.question(asked).input_ids, "choices": choices}


def test_a_server_samples_with_the_weights_of_the_moment(asked, heldout, random_models, context, tmp_path, monkeypatch):
    Server.rows = list(open_dataset(asked[0]).rows())
    waits = []

    def server(url, timeout_s):
        waits.append(timeout_s)
        return Server(url, load_processor(random_models[0]))

    monkeypatch.setattr(step, "VllmServer", server)
    served = RolloutServer(url="http://a:1", model="m", timeout_s=7200)
    plan = CONFIG.rollout.model_copy(update={"server": served, "importance_cap": 2.0})
    config = CONFIG.model_copy(update={"rollout": plan, "training": CONFIG.training.model_copy(update={"steps": 4})})
    result = run(
        config, rows=asked[0], heldout=heldout, init=random_models[0], model=tmp_path / "model", context=context
    )
    assert waits == [7200]
    assert Server.calls.count("/collective_rpc") == 2, "once an iteration"
    assert Server.calls.count("/v1/chat/completions") == 8
    learned = [record for record in result.history if record["learning"]]
    assert learned and all(record["mismatch"] > 0.1 and 0 < record["importance"] <= 2 for record in learned)
    assert [server.open for server in Server.made] == [False]


def test_a_server_that_fails_is_left_without_connections(asked, heldout, random_models, context, tmp_path, monkeypatch):
    made = []

    class Absent(step.VllmServer):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(step, "VllmServer", Absent)
    server = RolloutServer(url="http://127.0.0.1:9", model="m")
    plan = CONFIG.rollout.model_copy(update={"server": server, "importance_cap": 2.0})
    config = CONFIG.model_copy(update={"rollout": plan})
    with pytest.raises(InputError, match="ConnectError"):
        run(config, rows=asked[0], heldout=heldout, init=random_models[0], model=tmp_path / "model", context=context)
    (server,) = made
    with pytest.raises(RuntimeError, match="client has been closed"):
        server.get("/health")


def test_chance_in_the_network_is_allowed_where_every_rollout_has_one_step():
    given = CONFIG.model_dump()
    given["training"] |= {"batch_size": 16, "drop_path_rate": 0.1}
    assert GspoConfig.model_validate(given).training.drop_path_rate == 0.1


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("training", {"packing": PackingConfig(max_tokens=64, max_units=4)}, r"training\.packing: answers are packed"),
        ("training", {"batch_size": 6}, r"batch_size must divide rollout\.prompts \* rollout\.responses"),
        ("rollout", {"server": {"url": "http://a:1", "model": "m"}}, "importance_cap: a server samples"),
        ("training", {"jpeg_quality": (75, 100)}, r"training\.jpeg_quality: answers are to the image as it is"),
        ("training", {"text_to_multimodal": (1, 2)}, r"training\.text_to_multimodal: queries come in shuffled epochs"),
        ("training", {"drop_path_rate": 0.1}, r"training\.drop_path_rate: not with several steps on a rollout"),
        ("training", {"lora": {"dropout": 0.1}}, r"training\.lora\.dropout: not with several steps on a rollout"),
        ("reward", {"soft_length": 64}, r"soft_length must be below rollout\.max_new_tokens, which is 64"),
    ],
)
def test_settings_that_cannot_be_are_refused(section, changes, message):
    given = CONFIG.model_dump()
    given[section] |= changes
    with pytest.raises(ValidationError, match=message):
        GspoConfig.model_validate(given)
