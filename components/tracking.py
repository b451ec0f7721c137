"""MLflow: runs, pointers to models, and the registry. The only module that imports it, and only when it is used.

MLflow holds numbers, hashes and addresses, never weights: those lie in the store (docs/architecture.md).
"""

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from components.context import RegisteredModel, StepResult
from components.lock import locked
from model.data.errors import InputError

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_EXPERIMENT = "fovea"
_PREVIOUS = "previous_champion"
_PROBES, _PROBE_SECONDS = 3, 5.0
_MOST_PARAMS, _MOST_METRICS = 100, 1000  # what MLflow takes in one call
# MLflow's own defaults wait seven times two minutes for a dead server. No usage data leaves this machine either.
_MLFLOW_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def redacted(text: str) -> str:
    """``text`` without credentials: neither those in an address nor those of the environment."""
    text = re.sub(r"://[^/\s]*@", "://***@", text)
    for name in _SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return text


def check_server(uri: str) -> None:
    """Fail before the work and not after it when a tracking server does not answer.

    Raises:
        InputError: no answer from ``uri`` after a few seconds. Any HTTP status is an answer.
    """
    if urlsplit(uri).scheme not in ("http", "https"):
        return
    address = re.sub(r"://[^/\s]*@", "://", uri).rstrip("/") + "/health"
    for attempt in range(_PROBES):
        try:
            with urllib.request.urlopen(address, timeout=_PROBE_SECONDS):
                return
        except urllib.error.HTTPError:
            return
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            if attempt < _PROBES - 1:
                time.sleep(1.0)
    raise InputError(f"the tracking server {redacted(uri)} does not answer: {reason}")


@contextmanager
def _speaking_to(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into one line."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"the tracking server {redacted(uri)}: {redacted(reason)}") from error


@cache
def _client(uri: str) -> "MlflowClient":
    """A client whose store exists; two processes never create the same sqlite file at once."""
    for name, value in _MLFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    if not uri.startswith("sqlite:///"):
        return MlflowClient(tracking_uri=uri)
    file = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.with_name(file.name + ".lock")), _speaking_to(uri):
        client = MlflowClient(tracking_uri=uri)
        _experiment_id(client, file.parent / "artifacts")
    return client


def _experiment_id(client: "MlflowClient", artifacts: Path | None = None) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    return client.create_experiment(name, artifact_location=artifacts.as_uri() if artifacts else None)


@dataclass(frozen=True)
class StepRecord:
    """Everything about one step that goes into MLflow.

    ``inputs`` maps a name to (address, SHA-256), ``outputs`` too; times are seconds since the epoch and seconds.
    """

    step: str
    config: dict[str, Any]
    inputs: dict[str, tuple[str, str]]
    outputs: dict[str, tuple[str, str]]
    tags: dict[str, str]
    result: StepResult
    started: float
    seconds: float
    model_id: str | None = None
    """The logged model that the step was given, if any: its scores are attached to it."""


def track(record: StepRecord, uri: str) -> dict[str, str]:
    """Log one finished step.

    It goes into the run MLFLOW_RUN_ID where the KFP backend opened one, else into a run of its own.

    Returns:
        ``run_id``, and ``model_id`` of the logged model if the step made a model.

    Raises:
        InputError: the server refused or did not answer, in one line.
    """
    client = _client(uri)
    with _speaking_to(uri):
        given = os.environ.get("MLFLOW_RUN_ID")
        run = client.get_run(given) if given else _open_run(client, record)
        run_id = run.info.run_id
        _log_identity(client, run_id, record)
        tracked = {"run_id": run_id}
        if "model" in record.outputs:
            tracked["model_id"] = _log_model(uri, run, record)
        model_id = tracked.get("model_id") or _known_model(client, record.model_id)
        _log_numbers(client, run_id, record, model_id)
        if not given:
            client.set_terminated(run_id, "FINISHED", end_time=_milliseconds(record.started + record.seconds))
    return tracked


def _open_run(client: "MlflowClient", record: StepRecord) -> "Run":
    return client.create_run(
        _experiment_id(client),
        start_time=_milliseconds(record.started),
        run_name=record.step,
        tags={"mlflow.source.name": f"components/{record.step}", "mlflow.source.type": "JOB"},
    )


def _log_identity(client: "MlflowClient", run_id: str, record: StepRecord) -> None:
    """Configuration, tags, and the digests of what went in."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    params = [Param(name, value) for name, value in flatten(record.config).items()]
    for chunk in _chunks(params, _MOST_PARAMS):
        client.log_batch(run_id, params=chunk)
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in record.tags.items()])
    datasets = [
        DatasetInput(
            Dataset(name, sha256[:36], "local", json.dumps({"uri": uri}), profile=json.dumps({"sha256": sha256})),
            [InputTag("mlflow.data.context", record.step)],
        )
        for name, (uri, sha256) in record.inputs.items()
    ]
    if datasets:
        client.log_inputs(run_id, datasets)


def _log_model(uri: str, run: "Run", record: StepRecord) -> str:
    """A logged model that points at the store: an address and a hash."""
    address, sha256 = record.outputs["model"]
    tags = {**record.tags, "storage_uri": address, "model_sha256": sha256}
    params = dict(list(flatten(record.config).items())[:_MOST_PARAMS])
    return _pointer(uri, record.step, run.info.experiment_id, tags, params=params, source_run_id=run.info.run_id)


def _pointer(uri: str, name: str, experiment_id: str, tags: dict[str, str], **further: Any) -> str:
    """Id of a new logged model without files."""
    import mlflow

    # A client cannot make logged models, only functions that go by a global address can; it must not stay behind.
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.initialize_logged_model(name=name, experiment_id=experiment_id, tags=tags, **further)
        return mlflow.finalize_logged_model(model.model_id, "READY").model_id
    finally:
        mlflow.set_tracking_uri("")
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _known_model(client: "MlflowClient", model_id: str | None) -> str | None:
    """``model_id`` if this server knows it: a model directory may come from elsewhere."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_logged_model(model_id).model_id if model_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _log_numbers(client: "MlflowClient", run_id: str, record: StepRecord, model_id: str | None) -> None:
    """Curves by step, final numbers, and held-out scores; the latter also on the model."""
    from mlflow.entities import Metric

    result, now = record.result, _milliseconds(record.started + record.seconds)
    metrics: list[Metric] = []
    for entry in result.history:
        step = int(entry["step"])
        metrics += [Metric(name, float(value), now, step) for name, value in entry.items() if name != "step"]
    metrics += [Metric(name, float(value), now, 0) for name, value in result.numbers.items()]
    for name, value in flat_scores(result).items():
        metrics.append(Metric(name, value, now, 0, model_id=model_id))
    for chunk in _chunks(metrics, _MOST_METRICS):
        client.log_batch(run_id, metrics=chunk)


def flat_scores(result: StepResult) -> dict[str, float]:
    """Held-out scores as flat numbers: ``heldout/<family>/<what>``."""
    return {
        f"heldout/{family}/{name}": float(value)
        for family, score in result.heldout.items()
        for name, value in vars(score).items()
        if value is not None
    }


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as flat parameters with dotted names."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


class MlflowRegistry:
    """The model registry on MLflow. MLflow is imported at the first call."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def by_alias(self, name: str, alias: str) -> RegisteredModel | None:
        """The version that holds ``alias``, or None."""
        from mlflow.exceptions import MlflowException

        client = _client(self._uri)
        with _speaking_to(self._uri):
            try:
                return self._version(name, client.get_model_version_by_alias(name, alias).version)
            except MlflowException as error:
                # MLflow calls a missing alias an invalid value. The text alone does not decide: an error of the network
                # names the address, in which "alias" stands too, and does not say that there is no champion.
                missing = error.error_code == "INVALID_PARAMETER_VALUE" and "alias" in str(error).lower()
                if missing or error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def names(self) -> list[str]:
        """Every registered model, in alphabetical order."""
        client = _client(self._uri)
        with _speaking_to(self._uri):
            return sorted(model.name for model in client.search_registered_models(max_results=1000))

    def by_sha256(self, name: str, model_sha256: str) -> RegisteredModel | None:
        """The newest version registered for this payload, or None."""
        client = _client(self._uri)
        with _speaking_to(self._uri):
            found = client.search_model_versions(f"name = '{name}' and tags.model_sha256 = '{model_sha256}'")
            return self._version(name, max(int(version.version) for version in found)) if found else None

    def register(self, name: str, storage_uri: str, model_sha256: str, tags: dict[str, str]) -> RegisteredModel:
        """Make a new version whose source is ``storage_uri``."""
        from mlflow.exceptions import MlflowException

        client = _client(self._uri)
        with _speaking_to(self._uri):
            try:
                client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            tags = {**tags, "storage_uri": storage_uri, "model_sha256": model_sha256}
            source, model_id = storage_uri, None
            if urlsplit(self._uri).scheme in ("http", "https") and urlsplit(storage_uri).scheme in ("", "file"):
                # A server takes no local path from a client, but a logged model that carries the address in its tags.
                model_id = _pointer(self._uri, name, _experiment_id(client), tags)
                source = f"models:/{model_id}"
            made = client.create_model_version(name, source, tags=tags, model_id=model_id, await_creation_for=0)
            return self._version(name, made.version)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point ``alias`` at ``version``. The version remembers whom it replaced as champion, for ``rollback``."""
        before = self.by_alias(name, alias)
        if before and before.version == version:
            return
        client = _client(self._uri)
        with _speaking_to(self._uri):
            if alias == "champion" and before:
                client.set_model_version_tag(name, str(version), _PREVIOUS, str(before.version))
            client.set_registered_model_alias(name, alias, str(version))

    def version(self, name: str, version: int) -> RegisteredModel:
        """One version.

        Raises:
            InputError: there is no such version.
        """
        _client(self._uri)
        with _speaking_to(self._uri):
            return self._version(name, version)

    def _version(self, name: str, version: int | str) -> RegisteredModel:
        found = _client(self._uri).get_model_version(name, str(version))
        tags = dict(found.tags)
        uri = tags.get("storage_uri", found.source)
        aliases = tuple(sorted(found.aliases))
        return RegisteredModel(name, int(found.version), uri, tags.get("model_sha256", ""), aliases, tags)


def promote(name: str, version: int, uri: str) -> RegisteredModel:
    """Make ``version`` the champion.

    Raises:
        InputError: there is no such model or version.
    """
    registry = MlflowRegistry(uri)
    registry.version(name, version)
    registry.set_alias(name, "champion", version)
    return registry.version(name, version)


def rollback(name: str, uri: str) -> RegisteredModel:
    """Give the alias back to the champion before this one. Done again, it goes one further back.

    Raises:
        InputError: there is no champion, or none before it.
    """
    registry = MlflowRegistry(uri)
    champion = registry.by_alias(name, "champion")
    if champion is None:
        raise InputError(f"the registry has no champion of {name}")
    previous = champion.tags.get(_PREVIOUS)
    if previous is None:
        raise InputError(f"{name} version {champion.version} is the first champion; there is none to go back to")
    client = _client(uri)
    with _speaking_to(uri):
        client.set_registered_model_alias(name, "champion", previous)
    return registry.version(name, int(previous))
