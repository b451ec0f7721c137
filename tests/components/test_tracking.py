"""What a step leaves in MLflow, on a real sqlite server, and the model registry."""

import os
import socket
import time
from pathlib import Path

import pytest

from components.context import FamilyScore, StepResult
from components.tracking import MlflowRegistry, StepRecord, check_server, flatten, promote, redacted, rollback, track
from model.data.errors import InputError

SHA = "ab" * 32
RESULT = StepResult(
    numbers={"loss": 0.25, "tokens": 1200},
    history=[{"step": 10, "loss": 1.5, "rate": 1e-3}, {"step": 20, "loss": 0.25, "rate": 0.0}],
    heldout={"read": FamilyScore(0.8, 0.7, 0.9, 50, 0.1), "count": FamilyScore(0.6, 0.5, 0.7, 50, 0.2, 0.2, 3)},
)


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/deep/mlflow.db"


@pytest.fixture(scope="module")
def client(uri):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def record(step: str = "sft", **changes) -> StepRecord:
    fields = {
        "step": step,
        "config": {"training": {"learning_rate": 0.001, "betas": [0.9, 0.95]}, "init": "random"},
        "inputs": {"rows": ("file:///data/rows", SHA)},
        "outputs": {"model": ("file:///store/key/model", "cd" * 32)},
        "tags": {"profile": "tiny", "git_sha": "abc", "key": "k"},
        "result": RESULT,
        "started": 1_700_000_000.0,
        "seconds": 12.5,
    }
    return StepRecord(**fields | changes)


@pytest.fixture(scope="module")
def tracked(uri) -> dict[str, str]:
    return track(record(), uri)


def test_a_run_carries_configuration_curves_numbers_tags_and_times(client, tracked):
    run = client.get_run(tracked["run_id"])
    assert run.data.params == {"training.learning_rate": "0.001", "training.betas": "[0.9, 0.95]", "init": "random"}
    assert run.data.metrics["loss"] == 0.25
    assert run.data.metrics["heldout/count/swapped"] == 0.2
    assert "heldout/read/swapped" not in run.data.metrics
    assert run.data.tags.items() >= {"profile": "tiny", "git_sha": "abc", "key": "k"}.items()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "sft")
    assert run.info.end_time - run.info.start_time == 12_500
    curve = {metric.step: metric.value for metric in client.get_metric_history(tracked["run_id"], "rate")}
    assert curve == {10: 1e-3, 20: 0.0}


def test_inputs_are_datasets_with_their_digest(client, tracked):
    (given,) = client.get_run(tracked["run_id"]).inputs.dataset_inputs
    assert given.dataset.name == "rows"
    assert SHA.startswith(given.dataset.digest)
    assert SHA in given.dataset.profile


def test_a_training_stage_is_one_logged_model_that_points_and_holds_its_scores(client, tracked):
    model = client.get_logged_model(tracked["model_id"])
    assert model.status == "READY"
    assert model.tags["storage_uri"] == "file:///store/key/model"
    assert model.tags["model_sha256"] == "cd" * 32
    assert {metric.key: metric.value for metric in model.metrics}["heldout/read/score"] == 0.8
    assert model.source_run_id == tracked["run_id"]


def test_the_environment_is_as_it_was(uri, tracked, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///somewhere/else.db")
    track(record(), uri)
    assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:///somewhere/else.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    track(record(), uri)
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_no_weights_and_no_pickles_reach_mlflow(uri, tracked):
    root = Path(uri.removeprefix("sqlite:///")).parent
    assert {path.name for path in root.rglob("*") if path.is_file()} == {"mlflow.db", "mlflow.db.lock"}


def test_scores_of_an_evaluation_are_attached_to_the_model_it_was_given(client, uri, tracked):
    scores = StepResult(heldout={"locate": FamilyScore(0.4, 0.3, 0.5, 50, 0.0)})
    outputs = {"evaluation": ("file:///store/e", SHA)}
    made = track(record("evaluate", outputs=outputs, result=scores, model_id=tracked["model_id"]), uri)
    assert "model_id" not in made
    metrics = {metric.key: metric.value for metric in client.get_logged_model(tracked["model_id"]).metrics}
    assert metrics["heldout/locate/score"] == 0.4


def test_a_model_that_this_server_does_not_know_is_no_error(uri):
    outputs = {"evaluation": ("file:///store/e", SHA)}
    assert track(record("evaluate", outputs=outputs, model_id="m-" + "0" * 32), uri)["run_id"]


def test_the_run_that_the_backend_opened_is_used_and_left_open(client, uri, tracked, monkeypatch):
    experiment = client.get_run(tracked["run_id"]).info.experiment_id
    given = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    assert track(record(), uri)["run_id"] == given
    assert client.get_run(given).info.status == "RUNNING"
    assert client.get_run(given).data.metrics["loss"] == 0.25


def test_more_parameters_and_points_than_one_call_takes(client, uri):
    config = {f"p{index}": index for index in range(250)}
    history = [{"step": index, "loss": 1.0 / (index + 1)} for index in range(1500)]
    made = track(record("many", config=config, result=StepResult(history=history)), uri)
    assert len(client.get_run(made["run_id"]).data.params) == 250
    assert len(client.get_metric_history(made["run_id"], "loss")) == 1500


def test_flatten_joins_names_with_dots():
    assert flatten({"a": {"b": {"c": 1}, "d": None}, "e": "text"}) == {"a.b.c": "1", "a.d": "null", "e": "text"}


def test_credentials_are_never_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    assert redacted("https://me:pa@ss@host/x failed with hunter2") == "https://***@host/x failed with ***"
    assert redacted("see https://host/a@b") == "see https://host/a@b"


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_server_that_does_not_answer_is_one_line_without_its_password(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(InputError) as refused:
        check_server(f"http://user:secret@127.0.0.1:{closed_port()}")
    assert "does not answer" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_what_the_server_refuses_is_one_line(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is no database, and long enough to look at " * 100)
    with pytest.raises(InputError, match=r"the tracking server sqlite:.*not a database") as refused:
        track(record(), f"sqlite:///{tmp_path}/mlflow.db")
    assert "\n" not in str(refused.value)


def test_a_server_that_went_away_is_not_a_registry_without_champion(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match="the tracking server"):
        MlflowRegistry(f"http://127.0.0.1:{closed_port()}").by_alias("fovea", "champion")


@pytest.fixture
def registry(uri) -> MlflowRegistry:
    return MlflowRegistry(uri)


def test_the_registry_lists_its_models(registry):
    assert registry.names() == []
    for name in ("second", "first"):
        registry.register(name, "file:///store/model", SHA, {})
    assert registry.names() == ["first", "second"]


def test_the_registry_knows_versions_by_alias_and_by_payload(registry):
    assert registry.by_alias("known", "champion") is None
    assert registry.by_sha256("known", SHA) is None
    made = registry.register("known", "file:///store/a%20b/model", SHA, {"heldout_sha256": "h"})
    assert (made.version, made.storage_uri, made.tags["heldout_sha256"]) == (1, "file:///store/a%20b/model", "h")
    assert registry.by_alias("known", "champion") is None
    registry.set_alias("known", "champion", 1)
    assert registry.by_alias("known", "champion") == registry.by_sha256("known", SHA)
    assert registry.by_sha256("known", SHA).aliases == ("champion",)
    assert registry.by_sha256("another", SHA) is None


def three_champions(registry: MlflowRegistry, name: str) -> None:
    for version in (1, 2, 3):
        registry.register(name, f"file:///store/{version}", f"{version}" * 64, {})
        registry.set_alias(name, "champion", version)


def champion(registry: MlflowRegistry, name: str) -> int:
    return registry.by_alias(name, "champion").version


def test_rollback_goes_one_champion_back_each_time_and_stops_at_the_first(registry, uri):
    three_champions(registry, "back")
    assert rollback("back", uri).version == 2
    assert rollback("back", uri).version == 1
    with pytest.raises(InputError, match="version 1 is the first champion"):
        rollback("back", uri)
    assert champion(registry, "back") == 1


def test_promote_moves_the_alias_and_can_be_taken_back(registry, uri):
    three_champions(registry, "forth")
    assert promote("forth", 1, uri).aliases == ("champion",)
    assert rollback("forth", uri).version == 3


def test_promoting_the_champion_changes_nothing(registry, uri):
    three_champions(registry, "still")
    promote("still", 3, uri)
    assert rollback("still", uri).version == 2


def test_a_version_or_model_that_is_not_there_is_one_line(registry, uri):
    three_champions(registry, "few")
    for name, version in (("few", 9), ("nobody", 1)):
        with pytest.raises(InputError, match="not found"):
            promote(name, version, uri)
    with pytest.raises(InputError, match="no champion of nobody"):
        rollback("nobody", uri)
