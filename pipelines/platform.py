"""Fit a KFP task to the cluster: image, resources, store volume, environment. Only for compiled pipelines.

A pipeline on this machine must not pass through here: FOVEA_OUT would point at a mount that does not exist.
"""

from kfp import kubernetes
from kfp.dsl import PipelineTask

from pipelines.config import ImageFamily, PlatformConfig, TaskPlatform

_FAMILY: dict[str, ImageFamily] = {
    "collect": "data",
    "curate": "data",
    "version": "data",
    "fetch": "data",
    "build_preferences": "score",
    "select_queries": "data",
    "evaluate": "score",
    "gate": "score",
    "register": "operations",
    "deploy": "operations",
}
_SHARED_MEMORY = "/dev/shm"


def image_family(stage: str) -> ImageFamily:
    """The family of images and resources that a stage runs with; every stage not named otherwise trains."""
    return _FAMILY.get(stage, "train")


def task_platform(stage: str, platform: PlatformConfig) -> TaskPlatform:
    """Image and resources of a stage."""
    return getattr(platform, image_family(stage))


def apply_platform(task: PipelineTask, stage: str, platform: PlatformConfig) -> PipelineTask:
    """Set image, resources, store volume and environment of one task, and switch KFP's own caching off.

    Args:
        task: a task inside a pipeline function.
        stage: name of the step, e.g. ``sft``.
        platform: ``profile.platform``.
    """
    machine = task_platform(stage, platform)
    task.set_container_image(machine.image)
    task.set_caching_options(False)
    task.set_cpu_request(machine.cpu).set_cpu_limit(machine.cpu)
    task.set_memory_request(machine.memory).set_memory_limit(machine.memory)
    if machine.accelerators:
        task.set_accelerator_type(machine.accelerator).set_accelerator_limit(machine.accelerators)
    if machine.shared_memory:
        kubernetes.empty_dir_mount(
            task, "shared-memory", _SHARED_MEMORY, medium="Memory", size_limit=machine.shared_memory
        )
    kubernetes.mount_pvc(task, platform.store.claim, platform.store.path)
    for name, value in {**platform.env, "FOVEA_OUT": platform.store.path}.items():
        task.set_env_variable(name, value)
    if platform.tracking_secret:
        kubernetes.use_secret_as_env(task, platform.tracking_secret, _same_names("MLFLOW_TRACKING_URI"))
        credentials = _same_names("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        kubernetes.use_secret_as_env(task, platform.tracking_secret, credentials, optional=True)
    return task


def _same_names(*keys: str) -> dict[str, str]:
    return {key: key for key in keys}
