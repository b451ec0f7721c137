"""Render what the three servers need, and apply it on a cluster. Imports no torch."""

import json
from pathlib import Path
from typing import Any

import yaml

from components.context import StepContext, StepResult
from components.deploy.cluster import apply
from components.deploy.config import DeployConfig
from components.deploy.manifests import cluster_uri, render_manifests, service_name
from model.data.artifact import payload_sha256, write_atomic
from model.data.errors import InputError

SCHEMA_VERSION = 1
# Schemes that KServe's storage initializer reads from inside a pod.
_READABLE = frozenset({"pvc", "s3", "gs", "oci", "https", "hf"})
DEPLOYMENT, SERVICES = "deployment.json", "inferenceservices.yaml"


def run(
    config: DeployConfig, *, model: Path, verdict: Path, registration: Path, deployment: Path, context: StepContext
) -> StepResult:
    """Deploy ``model`` if it passed, the champion if it did not.

    Args:
        config: images, replicas, target.
        model: the model that was judged and registered.
        verdict: what ``gate`` wrote for it.
        registration: what ``register`` wrote for it.
        deployment: output; gets ``deployment.json`` for one machine and ``inferenceservices.yaml`` for a cluster.
        context: needs ``registry``.

    Raises:
        InputError: an input is missing or of another model, there is no champion, or the cluster cannot be used.
    """
    if context.registry is None:
        raise ValueError("deploy needs the model registry")
    family = _read(model / "config.json").get("model_type", "internvl")
    if family != "internvl":
        raise InputError(f"{model}: our servers are InternVL's; stock vLLM serves a {family} directory")
    registered, judged = _read(registration / "registration.json"), _read(verdict / "verdict.json")
    sha256 = payload_sha256(model)
    if registered["model_sha256"] != sha256 or judged["challenger"]["model_sha256"] != sha256:
        raise InputError(f"{registration}, {verdict}: of another model than {model}")
    chosen = {key: registered[key] for key in ("name", "version", "storage_uri")} | {"sha256": sha256}
    if not judged["passed"]:
        champion = context.registry.by_alias(config.registered_model, "champion")
        if champion is None:
            raise InputError(f"the verdict failed and {config.registered_model} has no champion: nothing to deploy")
        chosen = {
            "name": champion.name,
            "version": champion.version,
            "storage_uri": champion.storage_uri,
            "sha256": champion.model_sha256,
        }
    manifests = render_manifests(config, chosen["storage_uri"])
    deployment.mkdir(parents=True, exist_ok=True)
    document = {"schema_version": SCHEMA_VERSION, "model": chosen, "processes": render_processes(config)}
    write_atomic(deployment / DEPLOYMENT, json.dumps(document, indent=2, sort_keys=True).encode() + b"\n")
    write_atomic(deployment / SERVICES, yaml.safe_dump_all(manifests, sort_keys=True).encode())
    if config.target == "cluster":
        if cluster_uri(chosen["storage_uri"], config).partition("://")[0] not in _READABLE:
            where = f"the volume {config.volume_claim}, at {config.volume_path}"
            raise InputError(f"{chosen['storage_uri']}: pods cannot read it; keep the store on {where}")
        apply(manifests, config.namespace)
    values = {
        "deployed": "challenger" if judged["passed"] else "champion",
        "version": chosen["version"],
        "gateway": service_name(config.registered_model, "gateway"),
    }
    return StepResult(numbers={"version": float(chosen["version"])}, values=values)


def render_processes(config: DeployConfig) -> list[dict[str, Any]]:
    """The three processes for one machine, on free ports of the loopback interface.

    The launcher fills in ``{model}``, the model directory, and ``{vision}`` and ``{language}``, the addresses that the
    predictors took.
    """
    gpu = ["--settings", json.dumps({"device": "cuda", "dtype": "bfloat16"})] if config.gpus else []
    name = ["--name", config.registered_model]
    addresses = ["--vision", "{vision}", "--language-url", "http://{language}"]
    return [
        {"name": "vision", "module": "serving.vision", "args": ["--model", "{model}", *gpu]},
        {"name": "language", "module": "serving.language", "args": ["--model", "{model}", *name, *gpu]},
        {"name": "gateway", "module": "serving.gateway", "args": [*addresses, *name]},
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
