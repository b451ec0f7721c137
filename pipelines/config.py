"""Configuration of the cluster a pipeline is compiled for. Imports no torch and no kfp."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from model.config import Section

Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?([KMGTPE]i?)?$")]
"""A Kubernetes quantity of bytes, e.g. 16Gi."""
KubernetesName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
Image = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][A-Za-z0-9._/:@-]{0,254}$")]
EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_CPU = r"^[0-9]+(\.[0-9]+)?m?$"
ImageFamily = Literal["data", "train", "score", "operations"]


class TaskPlatform(Section):
    """What the tasks of one family run in. It is no part of a step's identity: a bigger machine re-runs nothing."""

    image: Image = "fovea-train:latest"
    """Container image, with a tag or a digest (infra/images)."""
    cpu: str = Field("4", pattern=_CPU)
    """CPU limit and request, in cores or millicores."""
    memory: Quantity = "16Gi"
    """Memory limit and request."""
    shared_memory: Quantity | None = None
    """Size of /dev/shm; NCCL and data loaders of several processes need more than the container's 64 MiB."""
    accelerator: str = Field("nvidia.com/gpu", pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")
    """Extended resource that counts the accelerators."""
    accelerators: int = Field(0, ge=0)
    """Accelerators of each node."""
    nodes: int = Field(1, ge=1)
    """Nodes of a training task."""


class OperationsPlatform(TaskPlatform):
    """Tasks that only talk to servers."""

    cpu: str = Field("1", pattern=_CPU)
    """CPU limit and request, in cores or millicores."""
    memory: Quantity = "2Gi"
    """Memory limit and request."""


class StoreVolume(Section):
    """The volume that holds the store, the state of running steps, and checkpoints to start from."""

    claim: KubernetesName = "fovea-store"
    """Name of a ReadWriteMany PersistentVolumeClaim."""
    path: str = Field("/fovea", pattern=r"^(/[A-Za-z0-9._-]+)+$")
    """Where it is mounted; FOVEA_OUT of every task."""


class PlatformConfig(Section):
    """The cluster: images and resources of each family of steps, the store, the tracking server."""

    data: TaskPlatform = TaskPlatform()
    """collect, curate, version, fetch, select_queries."""
    train: TaskPlatform = TaskPlatform()
    """pretrain, sft, mpo, gspo, vico, route, stream_sft, quantize."""
    score: TaskPlatform = TaskPlatform()
    """build_preferences, evaluate, gate: they generate answers."""
    operations: OperationsPlatform = OperationsPlatform()
    """register, deploy."""
    store: StoreVolume = StoreVolume()
    """The volume that all tasks share."""
    tracking_secret: KubernetesName | None = None
    """Secret with the key MLFLOW_TRACKING_URI, and MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the
    server asks for them. None keeps runs in a sqlite file on the store's volume."""
    env: dict[EnvironmentName, str] = Field(default_factory=dict)
    """Further environment of every task. It is written into the pipeline: no secrets here."""
