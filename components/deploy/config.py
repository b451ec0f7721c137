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
    namespace: str = "default"
    vision_image: str = "fovea-serve:latest"
    language_image: str = "fovea-serve:latest"
    gateway_image: str = "fovea-gateway:latest"
    vision_replicas: int = Field(1, ge=0)
    language_replicas: int = Field(1, ge=0)
    gateway_replicas: int = Field(1, ge=1)
    gpus: int = Field(0, ge=0)
    """GPUs of each predictor."""
