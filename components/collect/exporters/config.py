"""Formats that a dataset can be exported to. Imports no torch."""

from enum import StrEnum


class ExportFormat(StrEnum):
    """A format that other tools read."""

    INTERNVL = "internvl"
    """Meta-json, jsonl files and images."""
    WEBDATASET = "webdataset"
    """Tar files."""
