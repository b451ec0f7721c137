"""Configuration of ``register``. Imports no torch."""

from pydantic import Field

from model.config import Section


class RegisterConfig(Section):
    """Where the version goes."""

    registered_model: str = Field("fovea", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name in the model registry."""
