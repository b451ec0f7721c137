"""The base of every typed configuration section. Imports no torch."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a profile: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
