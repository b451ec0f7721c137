"""``fovea compile``: every profile becomes a valid KFP package for the cluster that it names."""

import subprocess
import sys

import pytest
import typer
import yaml
from google.protobuf import json_format
from kfp import components
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2
from typer.testing import CliRunner

from cli.compile import mount
from model.data.errors import InputError
from pipelines.compile import compile_profile
from pipelines.platform import image_family, task_platform
from pipelines.profile import load_profile, profile_names, section_json


def compiled(tmp_path, profile):
    path = tmp_path / f"{profile.name}.yaml"
    compile_profile(profile, path)
    pipeline, platforms = yaml.safe_load_all(path.read_text())
    return pipeline, platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def step_of(label: str) -> str:
    """The step of a task or an executor, as our components write it."""
    return label.removeprefix("exec-").replace("-", "_")


QUICK = ("micro", "internvl3_5_8b", "qwen2_5_vl_7b")
PROFILES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in profile_names()]


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_compiles_to_a_valid_package_for_its_cluster(tmp_path, name):
    profile = load_profile(name)
    pipeline, pods = compiled(tmp_path, profile)
    spec = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
    assert set(map(step_of, spec.root.dag.tasks)) == set(profile.line)
    assert not any(task.caching_options.enable_cache for task in spec.root.dag.tasks.values())

    executors = json_format.ParseDict(
        pipeline["deploymentSpec"], pipeline_spec_pb2.PipelineDeploymentConfig()
    ).executors
    assert set(map(step_of, executors)) == set(profile.line)
    for label, executor in executors.items():
        machine = task_platform(step_of(label), profile.platform)
        container = executor.container
        assert container.image == machine.image
        assert container.resources.resource_memory_limit == machine.memory
        assert container.resources.resource_cpu_limit == machine.cpu
        assert container.resources.accelerator.resource_count == (
            str(machine.accelerators) if machine.accelerators else ""
        )
        environment = {variable.name: variable.value for variable in container.env}
        assert environment == {"FOVEA_OUT": profile.platform.store.path, "FOVEA_PROFILE": name}

        pod = json_format.ParseDict(pods[label], kubernetes_executor_config_pb2.KubernetesExecutorConfig())
        assert [(mount.constant, mount.mount_path) for mount in pod.pvc_mount] == [("fovea-store", "/fovea")]
        secrets = {key.env_var for secret in pod.secret_as_env for key in secret.key_to_env}
        assert ("MLFLOW_TRACKING_URI" in secrets) == (profile.platform.tracking_secret is not None)


def test_kfp_loads_the_package_and_finds_the_profile_in_it(tmp_path):
    profile = load_profile("internvl3_5_8b")
    compile_profile(profile, tmp_path / "pipeline.yaml")
    loaded = components.load_component_from_file(str(tmp_path / "pipeline.yaml"))
    defaults = {name: parameter.default for name, parameter in loaded.component_spec.inputs.items()}
    assert defaults == {stage: section_json(profile, stage) for stage in profile.line}


def test_compiling_twice_gives_the_same_bytes(tmp_path):
    for name in ("one.yaml", "two.yaml"):
        compile_profile(load_profile("tiny"), tmp_path / name)
    assert (tmp_path / "one.yaml").read_bytes() == (tmp_path / "two.yaml").read_bytes()


def test_the_cluster_can_be_changed_without_changing_any_step(tmp_path):
    cluster = {
        "data": {"image": "registry.example/data:1"},
        "train": {
            "image": "registry.example/train@sha256:" + "0" * 64,
            "accelerators": 2,
            "accelerator": "amd.com/gpu",
        },
        "store": {"claim": "mine", "path": "/mnt/mine"},
        "env": {"HF_HUB_OFFLINE": "1"},
    }
    profile = load_profile("tiny", {"platform": cluster})
    pipeline, pods = compiled(tmp_path, profile)
    executors = pipeline["deploymentSpec"]["executors"]
    images = {stage: executors[f"exec-{stage.replace('_', '-')}"]["container"]["image"] for stage in profile.line}
    assert images["collect"] == images["curate"] == "registry.example/data:1"
    assert images["pretrain"] == images["sft"] == "registry.example/train@sha256:" + "0" * 64
    assert images["evaluate"] == images["gate"] == images["register"] == images["deploy"] == "fovea-train:latest"
    sft = executors["exec-sft"]["container"]
    assert sft["resources"]["accelerator"]["resourceType"] == "amd.com/gpu"
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in sft["env"]
    assert {"name": "FOVEA_OUT", "value": "/mnt/mine"} in sft["env"]
    assert pods["exec-sft"]["pvcMount"][0]["constant"] == "mine"


def test_shared_memory_is_mounted_where_the_profile_asks_for_it(tmp_path):
    _, pods = compiled(tmp_path, load_profile("internvl3_5_8b"))
    mounted = {label: pod["emptyDirMounts"] for label, pod in pods.items() if "emptyDirMounts" in pod}
    assert {image_family(step_of(label)) for label in mounted} == {"train", "score"}
    assert mounted["exec-sft"][0]["mountPath"] == "/dev/shm"
    assert mounted["exec-sft"][0]["sizeLimit"] == "64Gi"


def test_what_a_pipeline_leaves_out_is_said(tmp_path):
    notes = compile_profile(load_profile("internvl3_5_241b_a28b"), tmp_path / "pipeline.yaml")
    assert any("one node" in note and "sft (32)" in note for note in notes)
    notes = compile_profile(load_profile("qwen2_5_vl_7b"), tmp_path / "pipeline.yaml")
    assert any("family qwen2_5_vl" in note for note in notes)
    assert compile_profile(load_profile("tiny"), tmp_path / "pipeline.yaml") == []


def test_a_line_that_is_not_the_pipelines_is_refused(tmp_path):
    profile = load_profile("tiny", {"line": ["collect", "curate"]})
    with pytest.raises(InputError, match="profile tiny: line"):
        compile_profile(profile, tmp_path / "pipeline.yaml")


@pytest.mark.parametrize(("name", "problem"), [("pipeline.txt", r"\.yaml file"), ("taken.yaml", "Is a directory")])
def test_an_output_that_cannot_be_written_is_one_line(tmp_path, name, problem):
    (tmp_path / "taken.yaml").mkdir()
    with pytest.raises(InputError, match=problem):
        compile_profile(load_profile("tiny"), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken.yaml"]


def test_compiling_needs_no_torch(tmp_path):
    code = "import sys; from pathlib import Path; from pipelines.compile import compile_profile; "
    code += "from pipelines.profile import load_profile; "
    code += f"compile_profile(load_profile('internvl3_5_8b'), Path({str(tmp_path / 'pipeline.yaml')!r})); "
    code += "print([m for m in ('torch', 'transformers', 'mlflow', 'daft') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the command


def fovea_compile(*arguments):
    app = typer.Typer()
    mount(app)
    return CliRunner().invoke(app, arguments)


def test_the_command_writes_the_file_and_prints_its_path(tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEA_OUT", str(tmp_path))
    result = fovea_compile("--profile", "micro", "--set", "sft.training.steps=3")
    assert result.exit_code == 0, result.output
    path = tmp_path / "compiled" / "micro.yaml"
    assert result.stdout.strip() == str(path)
    assert '"steps":3' in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--profile", "nowhere"), "no profile is named"),
        (("--set", "sft.training.stepz=3"), "override sft.training.stepz: unknown key"),
        (("--set", "sft.training.learning_rate=-1"), "override sft.training.learning_rate: must be greater than 0"),
        (("--set", "platform.train.image=two words"), "override platform.train.image"),
        (("--set", "nonsense"), "write key=value"),
    ],
)
def test_a_mistake_writes_no_file(tmp_path, arguments, problem):
    result = fovea_compile("--profile", "tiny", "-o", str(tmp_path / "pipeline.yaml"), *arguments)
    assert result.exit_code != 0
    assert isinstance(result.exception, InputError)
    assert problem in str(result.exception)
    assert not list(tmp_path.iterdir())
