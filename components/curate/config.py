"""Configuration of ``curate``. Imports no torch."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from components.curate.recipe import DEFAULT, Operator, check_recipe
from model.config import Section


class PreviousVersion(Section):
    """The outputs of an earlier run, to show how the data drifted. Nothing of them enters the new rows."""

    transcriptions: Path | None = None
    """Dataset directory."""
    questions: Path | None = None
    """Dataset directory."""


class CurateConfig(Section):
    """The recipe, and the tasks of each stage."""

    recipe: Annotated[tuple[Operator, ...], AfterValidator(check_recipe)] = DEFAULT
    """The operators, in the order in which they look at the rows (components/curate/README.md)."""
    pretrain_tasks: tuple[str, ...] = ("transcribe",)
    """Rows of these tasks go to pre-training; all others to fine-tuning."""
    previous: PreviousVersion = PreviousVersion()
    """What the drift table of the report compares with."""
    shards: int = Field(1, ge=1)
    """Parquet files per dataset."""
