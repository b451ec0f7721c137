"""The base of every typed configuration section. Imports no torch."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from model.machine import computes_bfloat16


class Section(BaseModel):
    """A part of a profile: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def _of_this_machine(value: Any) -> Any:
    if value == "auto":
        return "bfloat16" if computes_bfloat16() else "float32"
    return value


Precision = Annotated[Literal["float32", "bfloat16"], BeforeValidator(_of_this_machine)]
"""Of a forward pass. ``auto`` stands for bfloat16 where a GPU or the processor computes in it, and for float32
elsewhere. It is settled when the setting is read, so what is run, recorded and compared has one of the two names."""
