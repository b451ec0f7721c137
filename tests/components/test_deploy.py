"""Rendering and applying a deployment."""

import importlib
import json
import pkgutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import kserve
import kubernetes_validate
import pytest
import yaml
from kubernetes import client

from components.context import RegisteredModel, StepContext
from components.deploy.config import DeployConfig
from components.deploy.manifests import cluster_uri, render_manifests, service_name
from components.deploy.step import run
from model.data.artifact import payload_sha256
from model.data.errors import InputError
from serving.deployment import read_deployment

CHAMPION = RegisteredModel("fovea", 3, "file:///fovea/store/champion/model", "c" * 64, ("champion",))


class OneChampion:
    """A registry that holds a champion, or none."""

    def __init__(self, champion: RegisteredModel | None) -> None:
        self.champion = champion

    def by_alias(self, name: str, alias: str) -> RegisteredModel | None:
        return self.champion if (name, alias) == ("fovea", "champion") else None


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """A model that was judged and registered as version 4."""
    model, verdict, registration = tmp_path / "model", tmp_path / "verdict", tmp_path / "registration"
    for directory in (model, verdict, registration):
        directory.mkdir()
    (model / "config.json").write_text("{}")
    sha256 = payload_sha256(model)
    write(verdict / "verdict.json", {"passed": True, "challenger": {"model_sha256": sha256}})
    registered = {"name": "fovea", "version": 4, "storage_uri": "file:///fovea/store/new/model", "model_sha256": sha256}
    write(registration / "registration.json", registered)
    return {"model": model, "verdict": verdict, "registration": registration}


def write(path: Path, document: dict) -> None:
    path.write_text(json.dumps(document))


def fail(inputs: dict[str, Path]) -> None:
    path = inputs["verdict"] / "verdict.json"
    write(path, json.loads(path.read_text()) | {"passed": False})


def deploy(inputs: dict[str, Path], champion: RegisteredModel | None = CHAMPION, **config) -> tuple[Path, dict]:
    output = inputs["model"].parent / "deployment"
    context = StepContext(state_dir=output.parent / "state", registry=OneChampion(champion))
    result = run(DeployConfig(**config), **inputs, deployment=output, context=context)
    return output, result.values


def test_a_model_that_our_servers_cannot_open_is_refused(inputs):
    write(inputs["model"] / "config.json", {"model_type": "qwen2_5_vl"})
    with pytest.raises(InputError, match=r"our servers are InternVL's; stock vLLM serves a qwen2_5_vl directory"):
        deploy(inputs)


def test_a_model_that_passed_is_deployed(inputs):
    output, values = deploy(inputs)
    deployment = read_deployment(output)
    assert (deployment.model.version, deployment.model.storage_uri) == (4, "file:///fovea/store/new/model")
    assert [process.name for process in deployment.processes] == ["vision", "language", "gateway"]
    assert values == {"deployed": "challenger", "version": 4, "gateway": "fovea-gateway"}


def test_after_a_failed_verdict_the_champion_is_deployed(inputs):
    fail(inputs)
    output, values = deploy(inputs)
    deployment = read_deployment(output)
    assert (deployment.model.version, deployment.model.sha256) == (3, "c" * 64)
    assert values["deployed"] == "champion"
    assert "pvc://fovea-store/store/champion/model" in (output / "inferenceservices.yaml").read_text()


def test_a_failed_verdict_without_a_champion_deploys_nothing(inputs):
    fail(inputs)
    with pytest.raises(InputError, match="no champion"):
        deploy(inputs, champion=None)
    assert not (inputs["model"].parent / "deployment").exists()


@pytest.mark.parametrize("which", ["verdict", "registration", "model"])
def test_inputs_of_different_models_are_refused(inputs, which):
    if which == "model":
        (inputs["model"] / "config.json").write_text('{"other": 1}')
    elif which == "verdict":
        write(inputs["verdict"] / "verdict.json", {"passed": True, "challenger": {"model_sha256": "0"}})
    else:
        path = inputs["registration"] / "registration.json"
        write(path, json.loads(path.read_text()) | {"model_sha256": "0"})
    with pytest.raises(InputError, match="another model"):
        deploy(inputs)


def test_a_missing_input_is_named(inputs):
    (inputs["verdict"] / "verdict.json").unlink()
    with pytest.raises(InputError, match=r"verdict\.json"):
        deploy(inputs)


def test_the_same_inputs_give_the_same_payload(inputs):
    first = payload_sha256(deploy(inputs)[0])
    assert payload_sha256(deploy(inputs)[0]) == first


CONFIGS = {
    "plain": DeployConfig(),
    "gpus": DeployConfig(gpus=1, registered_model="My.Model_2"),
    "vllm": DeployConfig(gpus=8, language_server="vllm", namespace="models"),
}


class Reply:
    """What the Kubernetes client deserialises."""

    def __init__(self, document: dict) -> None:
        self.data = json.dumps(document)


@pytest.fixture
def typed(monkeypatch):
    """A document as the typed models of the KServe and Kubernetes packages understand it."""
    for found in pkgutil.iter_modules(kserve.models.__path__):
        module = importlib.import_module(f"kserve.models.{found.name}")
        for name in vars(module):
            if name.startswith("V1beta1"):
                monkeypatch.setattr(client.models, name, getattr(module, name), raising=False)
    api = client.ApiClient()
    return lambda document, kind: api.sanitize_for_serialization(api.deserialize(Reply(document), kind))


@pytest.mark.parametrize("case", CONFIGS)
def test_the_manifests_are_what_kserve_and_kubernetes_define(case, typed):
    manifests = list(yaml.safe_load_all(yaml.safe_dump_all(render_manifests(CONFIGS[case], "file:///fovea/m"))))
    for manifest in manifests:
        if manifest["kind"] == "NetworkPolicy":
            kubernetes_validate.validate(manifest, "1.30", strict=True)
            continue
        # A key that the types do not know would be gone; an empty name of a model they add.
        manifest["spec"]["predictor"].get("model", {}).setdefault("name", "")
        assert typed(manifest, kserve.V1beta1InferenceService) == manifest
        for container in manifest["spec"]["predictor"].get("containers", []):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [container]}}
            kubernetes_validate.validate(pod, "1.30", strict=True)


def test_only_the_gateway_reaches_the_predictors():
    manifests = render_manifests(DeployConfig(), "file:///fovea/m")
    policies = [manifest["spec"] for manifest in manifests if manifest["kind"] == "NetworkPolicy"]
    label = "serving.kserve.io/inferenceservice"
    assert [policy["podSelector"]["matchLabels"][label] for policy in policies] == ["fovea-vision", "fovea-language"]
    for policy in policies:
        (rule,) = policy["ingress"]
        assert rule["from"] == [{"podSelector": {"matchLabels": {label: "fovea-gateway"}}}]


def test_the_servers_understand_the_arguments_that_are_rendered():
    from serving.config import GatewayConfig, LanguageServerConfig, VisionServerConfig
    from serving.process import parse_arguments

    sections = {"vision": VisionServerConfig, "language": LanguageServerConfig, "gateway": GatewayConfig}
    for config in (DeployConfig(), DeployConfig(gpus=1)):
        services = [m for m in render_manifests(config, "s3://b/m") if m["kind"] == "InferenceService"]
        for (role, section), service in zip(sections.items(), services, strict=True):
            (container,) = service["spec"]["predictor"]["containers"]
            assert container["command"] == ["python", "-m", f"serving.{role}"]
            parsed, _, _ = parse_arguments(section, container["args"], model=role != "gateway")
            assert parsed.port in [port["containerPort"] for port in container["ports"]]


@pytest.mark.parametrize(
    ("name", "service"), [("fovea", "fovea-vision"), ("My.Model_2", "my-model-2-vision"), ("7b", "m-7b-vision")]
)
def test_service_names_are_dns_labels(name, service):
    assert service_name(name, "vision") == service


def test_a_directory_on_the_store_volume_becomes_a_volume_address():
    config = DeployConfig(volume_claim="vol", volume_path="/data/fovea")
    assert cluster_uri("file:///data/fovea/store/a%20b", config) == "pvc://vol/store/a b"
    assert cluster_uri("/data/fovea/x", config) == "pvc://vol/x"
    for elsewhere in ("file:///data/fovea2/x", "s3://bucket/x"):
        assert cluster_uri(elsewhere, config) == elsewhere


class Cluster(BaseHTTPRequestHandler):
    """As much of a Kubernetes API server as applying needs: it stores what it is given."""

    objects: dict[str, dict]
    verbs: list[str]
    refuse: bool

    def _reply(self, status: int, document: dict) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        found = self.objects.get(self.path)
        self._reply(200 if found else 404, found or {})

    def _store(self, path: str) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refuse:
            self._reply(403, {"message": "no"})
            return
        self.verbs.append(self.command)
        self.objects[path.partition("?")[0]] = document
        self._reply(200, document)

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if self.refuse:
            self._reply(403, {"message": "no"})
            return
        document = json.loads(body)
        self.verbs.append("POST")
        self.objects[f"{self.path.partition('?')[0]}/{document['metadata']['name']}"] = document
        self._reply(201, document)

    def do_PATCH(self) -> None:
        self._store(self.path)

    def log_message(self, *_) -> None:
        """Quiet."""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """An API server, and a kubeconfig that points at it."""
    Cluster.objects, Cluster.verbs, Cluster.refuse = {}, [], False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    use_kubeconfig(monkeypatch, path)
    yield Cluster
    server.shutdown()
    server.server_close()


def use_kubeconfig(monkeypatch, path: Path) -> None:
    # The package reads the variable once, when it is imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    monkeypatch.setattr("kubernetes.config.KUBE_CONFIG_DEFAULT_LOCATION", str(path), raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def test_a_cluster_gets_the_manifests_and_later_their_changes(inputs, cluster):
    deploy(inputs, target="cluster")
    assert cluster.verbs == ["POST"] * 5
    vision = "/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices/fovea-vision"
    assert cluster.objects[vision]["spec"]["predictor"]["maxReplicas"] == 1
    deploy(inputs, target="cluster", vision_replicas=3)
    assert cluster.verbs[5:] == ["PATCH"] * 5
    assert cluster.objects[vision]["spec"]["predictor"]["maxReplicas"] == 3


def test_what_a_cluster_refuses_is_one_line(inputs, cluster):
    cluster.refuse = True
    with pytest.raises(InputError, match="InferenceService fovea-vision: the cluster refused it: 403"):
        deploy(inputs, target="cluster")


def test_no_cluster_configuration_is_one_line(inputs, tmp_path, monkeypatch):
    use_kubeconfig(monkeypatch, tmp_path / "missing")
    with pytest.raises(InputError, match="no cluster is configured"):
        deploy(inputs, target="cluster")


def test_a_model_that_pods_cannot_read_is_not_applied(inputs, cluster):
    with pytest.raises(InputError, match="pods cannot read it"):
        deploy(inputs, target="cluster", volume_path="/elsewhere")
    assert cluster.verbs == []
