"""Configuration of ``fetch``. Imports no torch."""

from pathlib import PurePosixPath

from pydantic import Field, model_validator

from components.data_remote import check_remote
from model.config import Section


class FetchConfig(Section):
    """Which version is fetched, where no pointer is given; and from where, if not from where it was pushed."""

    repository: str = "."
    """Directory of the git work tree or bare repository that has ``revision``."""
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    """Commit, in full: branches and tags move, and a step's result must not."""
    path: str | None = None
    """The .dvc file of the dataset, relative to the root of the repository."""
    remote: str | None = None
    """DVC remote to fetch from. By default the pointer's, or the default remote of the revision's .dvc/config."""

    @model_validator(mode="after")
    def _makes_sense(self) -> "FetchConfig":
        if (self.revision is None) != (self.path is None):
            raise ValueError("revision and path come together")
        if self.path is not None and not _is_dvc_file(self.path):
            raise ValueError("path must be a .dvc file inside the repository, e.g. data/train.dvc")
        if self.remote is not None:
            check_remote(self.remote)
        return self


def _is_dvc_file(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return path.endswith(".dvc") and not path.startswith(("/", "-")) and ".." not in parts and ":" not in path
