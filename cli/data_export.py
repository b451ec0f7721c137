"""``fovea data export``: a dataset in a format that other tools read."""

from pathlib import Path
from typing import Annotated

import typer

from components.collect.exporters.config import ExportFormat

FormatOption = Annotated[
    ExportFormat, typer.Option("--format", "-f", help="internvl: meta-json, jsonl and images; webdataset: tar files.")
]


def export(
    dataset: Annotated[Path, typer.Argument(help="Dataset directory.")],
    output: Annotated[Path, typer.Argument(help="Directory to make.")],
    to: FormatOption = ExportFormat.INTERNVL,
) -> None:
    """Write a dataset in another format. What the format cannot hold goes to `rejects.jsonl` with the reason.

    Example: `fovea data export out/line/curate/questions questions-wds --format webdataset`
    """
    from components.collect.exporters.internvl import export_internvl
    from components.collect.exporters.webdataset import export_webdataset
    from model.data.shards import open_dataset

    rows = open_dataset(dataset, verify=True).rows()
    write = export_internvl if to is ExportFormat.INTERNVL else export_webdataset
    done = write(rows, output)
    typer.echo(f"{output}: {done.rows} rows in the format {to.value}; {done.rejects} rejects")
