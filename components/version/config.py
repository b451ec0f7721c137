"""Configuration of ``version``. Imports no torch."""

from pydantic import Field, model_validator

from components.data_remote import check_remote
from model.config import Section


class VersionConfig(Section):
    """Where a version's bytes go, and how its card is headed."""

    remote: str | None = None
    """DVC remote: a directory, or a URL without credentials (s3://bucket/path, ssh://..., https://...)."""
    name: str = Field("dataset", pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}$")
    """Title of the card."""
    examples: int = Field(12, ge=0, le=60)
    """Rows that the card shows, the tasks in turn."""

    @model_validator(mode="after")
    def _remote_is_an_address(self) -> "VersionConfig":
        # On the section and not on the field, whose value an error would repeat: it may hold a password.
        if self.remote is not None:
            check_remote(self.remote)
        return self
