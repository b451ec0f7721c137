"""The three KServe InferenceServices and their network policies, as plain dictionaries. Imports no torch."""

import json
import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from components.deploy.config import DeployConfig

Manifest = dict[str, Any]
HTTP_PORT, GRPC_PORT = 8080, 8081
_MODEL_PATH = "/mnt/models"
_POD_LABEL = "serving.kserve.io/inferenceservice"
_GPU = "nvidia.com/gpu"


def service_name(registered_model: str, role: str) -> str:
    """A DNS label for one of the three services of a registered model."""
    base = re.sub(r"[^a-z0-9]+", "-", registered_model.lower()).strip("-")[:40].strip("-")
    return f"{base if base[:1].isalpha() else f'm-{base}'}-{role}"


def cluster_uri(storage_uri: str, config: DeployConfig) -> str:
    """``storage_uri`` as KServe reads it: a directory on the store's volume becomes ``pvc://``, the rest stays."""
    parts = urlsplit(storage_uri)
    if parts.scheme in ("", "file"):
        path = PurePosixPath(unquote(parts.path))
        if path.is_relative_to(config.volume_path):
            return f"pvc://{config.volume_claim}/{path.relative_to(config.volume_path)}"
    return storage_uri


def render_manifests(config: DeployConfig, storage_uri: str) -> list[Manifest]:
    """Vision predictor, language predictor, gateway, and the policies that let only the gateway reach the first two.

    A language server trusts the features it is given, and one bad tensor may end a vLLM engine, so nobody but the
    gateway may speak to it.
    """
    uri = cluster_uri(storage_uri, config)
    vision, language, gateway = (service_name(config.registered_model, r) for r in ("vision", "language", "gateway"))
    addresses = ["--vision", f"{vision}-predictor:{GRPC_PORT}", "--language-url", f"http://{language}-predictor"]
    return [
        _service(config, vision, config.vision_replicas, _vision(config, uri)),
        _service(config, language, config.language_replicas, _language(config, uri)),
        _service(config, gateway, config.gateway_replicas, _gateway(config, addresses)),
        _only_from(config, vision, gateway, GRPC_PORT),
        _only_from(config, language, gateway, HTTP_PORT),
    ]


def _service(config: DeployConfig, name: str, replicas: int, predictor: Manifest) -> Manifest:
    metadata = {
        "name": name,
        "namespace": config.namespace,
        "annotations": {"serving.kserve.io/deploymentMode": "Standard"},
        "labels": {"app.kubernetes.io/part-of": "fovea"},
    }
    scale = {"minReplicas": replicas, "maxReplicas": max(1, replicas)}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {"predictor": scale | predictor},
    }


def _container(config: DeployConfig, image: str, module: str, args: list[str], gpus: int, probe: str) -> Manifest:
    return {
        # This name makes it a custom predictor.
        "name": "kserve-container",
        "image": image,
        "command": ["python", "-m", module],
        "args": ["--host", "0.0.0.0", *args],
        "resources": {"limits": {_GPU: str(gpus)}} if gpus else {},
        "readinessProbe": {"httpGet": {"path": probe, "port": HTTP_PORT}, "periodSeconds": 5, "timeoutSeconds": 5},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
        },
    }


def _settings(config: DeployConfig, **more: Any) -> list[str]:
    values = ({"device": "cuda", "dtype": "bfloat16"} if config.gpus else {}) | more
    return ["--settings", json.dumps(values, sort_keys=True)] if values else []


def _vision(config: DeployConfig, uri: str) -> Manifest:
    # The metrics port opens when the model is loaded, the gRPC port before: the probe asks the former.
    args = ["--model", _MODEL_PATH, "--port", str(GRPC_PORT), *_settings(config, metrics_port=HTTP_PORT)]
    container = _container(config, config.vision_image, "serving.vision", args, min(1, config.gpus), "/metrics")
    ports = [
        {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
        {"name": "h2c", "containerPort": GRPC_PORT, "protocol": "TCP"},
    ]
    return {"storageUris": [{"uri": uri, "mountPath": _MODEL_PATH}], "containers": [container | {"ports": ports}]}


def _language(config: DeployConfig, uri: str) -> Manifest:
    if config.language_server == "vllm":
        args = [
            f"--served-model-name={config.registered_model}",
            "--enable-mm-embeds",
            '--limit-mm-per-prompt={"image":0,"video":0}',
            f"--tensor-parallel-size={max(1, config.gpus)}",
        ]
        runtime = {"modelFormat": {"name": "vLLM"}, "runtime": "kserve-vllmserver", "storageUri": uri, "args": args}
        return {"model": runtime | ({"resources": {"limits": {_GPU: str(config.gpus)}}} if config.gpus else {})}
    args = ["--model", _MODEL_PATH, "--port", str(HTTP_PORT), "--name", config.registered_model, *_settings(config)]
    container = _container(config, config.language_image, "serving.language", args, config.gpus, "/health")
    ports = [{"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"}]
    return {"storageUris": [{"uri": uri, "mountPath": _MODEL_PATH}], "containers": [container | {"ports": ports}]}


def _gateway(config: DeployConfig, addresses: list[str]) -> Manifest:
    args = ["--port", str(HTTP_PORT), "--name", config.registered_model, *addresses]
    container = _container(config, config.gateway_image, "serving.gateway", args, 0, "/v1/models")
    ports = [{"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"}]
    return {"timeout": 600, "containers": [container | {"ports": ports}]}


def _only_from(config: DeployConfig, service: str, caller: str, port: int) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"{service}-from-gateway", "namespace": config.namespace},
        "spec": {
            "podSelector": {"matchLabels": {_POD_LABEL: service}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{"podSelector": {"matchLabels": {_POD_LABEL: caller}}}],
                    "ports": [{"protocol": "TCP", "port": port}],
                }
            ],
        },
    }
