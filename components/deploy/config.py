"""Configuration of ``deploy``. Imports no torch."""

from typing import Literal

from pydantic import Field

from model.config import Section


class DeployConfig(Section):
    """What the three servers get."""

    registered_model: str = Field("fovea", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name in the model registry."""
    target: Literal["laptop", "cluster"] = "laptop"
    """``cluster`` also applies the InferenceServices."""
    namespace: str = Field("default", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """Kubernetes namespace of the three services."""
    vision_image: str = "fovea-train:latest"
    """Container image of the vision predictor."""
    """The training image holds the predictors too; `infra/images/build` makes both images."""
    language_image: str = "fovea-train:latest"
    """Container image of the language predictor."""
    gateway_image: str = "fovea-gateway:latest"
    """Container image of the gateway."""
    language_server: Literal["fovea", "vllm"] = "fovea"
    """``vllm`` serves the language half with KServe's vLLM runtime in place of our own predictor."""
    vision_replicas: int = Field(1, ge=0)
    """Copies of the vision predictor."""
    language_replicas: int = Field(1, ge=0)
    """Copies of the language predictor."""
    gateway_replicas: int = Field(1, ge=1)
    """Copies of the gateway."""
    gpus: int = Field(0, ge=0)
    """GPUs of the language predictor; with any, the vision predictor gets one. Only vLLM uses more than one."""
    volume_claim: str = "fovea-store"
    """PersistentVolumeClaim with the store: a model below ``volume_path`` is served from it."""
    volume_path: str = Field("/fovea", pattern=r"^(/[A-Za-z0-9._-]+)+$")
    """Where the steps see that volume."""
