"""Make a version in the model registry, and move the aliases as the verdict says. Imports no torch."""

import json
from pathlib import Path
from typing import Any

from components.context import RegisteredModel, Registry, StepContext, StepResult
from components.register.config import RegisterConfig
from model.data.artifact import payload_sha256, write_atomic
from model.data.errors import InputError

SCHEMA_VERSION = 1
REGISTRATION = "registration.json"
ADAPTER, ADAPTER_BASE = "adapter", "base.json"
"""Folder of a merged model that holds its low-rank adapter, and the file there that names the base."""


def run(
    config: RegisterConfig, *, model: Path, evaluation: Path, verdict: Path, registration: Path, context: StepContext
) -> StepResult:
    """Register ``model``, as ``challenger`` always, as ``champion`` if it passed or if there is none.

    A payload that is registered already keeps its version: a re-run registers nothing twice. A model that was merged
    from a low-rank adapter is registered with it and with its base.

    Args:
        config: name in the registry.
        model: model directory.
        evaluation: what ``evaluate`` wrote for it.
        verdict: what ``gate`` wrote for it.
        registration: output; gets ``registration.json``.
        context: needs ``registry``; ``published`` says where model and predictions lie for good.

    Raises:
        InputError: an input is missing or broken, or of another model.
    """
    if context.registry is None:
        raise ValueError("register needs the model registry")
    scores, judged = _read(evaluation / "scores.json"), _read(verdict / "verdict.json")
    sha256 = payload_sha256(model)
    for path, of in ((evaluation, scores.get("model_sha256")), (verdict, judged["challenger"]["model_sha256"])):
        if of != sha256:
            raise InputError(f"{path}: it is of another model than {model}")
    storage_uri = context.published.get("model", model).absolute().as_uri()
    predictions = context.published.get("evaluation", evaluation).absolute() / scores["predictions"]
    tags = {
        "heldout_sha256": scores["heldout_sha256"],
        "predictions_uri": predictions.as_uri(),
        "evaluation_mean": f"{scores['mean']:.6f}",
        "code_version": _lineage(model).get("code_version", "none"),
        "verdict": "passed" if judged["passed"] else "failed",
    }
    adapter = _adapter(model, context.registry, config.registered_model)
    tags |= _adapter_tags(adapter)
    version = register(context.registry, config.registered_model, storage_uri, sha256, tags, judged["passed"])
    registration.mkdir(parents=True, exist_ok=True)
    document = {
        "schema_version": SCHEMA_VERSION,
        "name": version.name,
        "version": version.version,
        "aliases": list(version.aliases),
        "storage_uri": version.storage_uri,
        "model_sha256": sha256,
        "adapter": adapter,
    }
    write_atomic(registration / REGISTRATION, json.dumps(document, indent=2, sort_keys=True).encode() + b"\n")
    values = {"name": version.name, "version": version.version, "aliases": list(version.aliases)}
    return StepResult(numbers={"version": float(version.version)}, values=values)


def register(
    registry: Registry, name: str, storage_uri: str, model_sha256: str, tags: dict[str, str], passed: bool
) -> RegisteredModel:
    """The version of this payload, made if there is none, with its aliases set."""
    version = registry.by_sha256(name, model_sha256)
    if version is None:
        version = registry.register(name, storage_uri, model_sha256, tags)
    registry.set_alias(name, "challenger", version.version)
    if passed or registry.by_alias(name, "champion") is None:
        registry.set_alias(name, "champion", version.version)
    return registry.by_sha256(name, model_sha256) or version


def _adapter(model: Path, registry: Registry, name: str) -> dict[str, Any] | None:
    """Path in the model directory, hash and base of the adapter that was merged into a model; None where none was.

    ``base`` is the base's own name and newest version in the registry, or None if it is not registered.
    """
    path = model / ADAPTER
    if not path.is_dir():
        return None
    base_sha256 = _read(path / ADAPTER_BASE).get("sha256")
    if not isinstance(base_sha256, str):
        raise InputError(f"{path / ADAPTER_BASE}: sha256 of the base is missing")
    others = [other for other in registry.names() if other != name]
    found = (registry.by_sha256(candidate, base_sha256) for candidate in (name, *others))
    base = next((version for version in found if version), None)
    return {
        "path": ADAPTER,
        "sha256": payload_sha256(path),
        "base_sha256": base_sha256,
        "base": {"name": base.name, "version": base.version} if base else None,
    }


def _adapter_tags(adapter: dict[str, Any] | None) -> dict[str, str]:
    if adapter is None:
        return {}
    tags = {"adapter_path": adapter["path"], "adapter_sha256": adapter["sha256"], "base_sha256": adapter["base_sha256"]}
    if base := adapter["base"]:
        tags["base_version"] = f"{base['name']}/{base['version']}"
    return tags


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _lineage(model: Path) -> dict[str, Any]:
    """The lineage beside a model; empty for one that no step made."""
    path = model / "lineage.json"
    return _read(path) if path.is_file() else {}
