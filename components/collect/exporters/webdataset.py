"""A dataset as WebDataset tar files: ``KEY.json`` (the row) and ``KEY.0.jpg``, ``KEY.1.png``, ... (its media).

Whatever a row holds is in its json, so the format holds every row. The same rows give the same bytes.
"""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from components.collect.exporters.publishing import Exported, file_ending, new_directory
from model.data.schema import ROW_SCHEMA, Row

SHARD_BYTES = 256 << 20


def export_webdataset(rows: Iterable[Row], directory: Path, shard_bytes: int = SHARD_BYTES) -> Exported:
    """Write every row.

    Args:
        rows: of a dataset, valid; consumed once.
        directory: must not exist, or be empty.
        shard_bytes: a tar file is closed when it holds this many bytes of members.

    Raises:
        InputError: ``directory`` holds something.
    """
    count = 0
    with new_directory(directory) as partial:
        tar: tarfile.TarFile | None = None
        shard = size = 0
        try:
            for row in rows:
                if tar is None:
                    tar, size = tarfile.TarFile(partial / f"shard-{shard:05d}.tar", "w", format=tarfile.PAX_FORMAT), 0
                    shard += 1
                for name, data in _members(f"{count:09d}", row):
                    _add(tar, name, data)
                    size += len(data)
                count += 1
                if size >= shard_bytes:
                    tar.close()
                    tar = None
        finally:
            if tar is not None:
                tar.close()
    return Exported(count, 0)


def _members(key: str, row: Row) -> Iterable[tuple[str, bytes]]:
    """Names and contents of a row's members: media first, so that a reader of one pass has them with the json."""
    described: list[dict[str, Any]] = []
    for number, medium in enumerate(row["media"]):
        facts: dict[str, Any] = {name: value for name, value in medium.items() if name != "bytes" and value is not None}
        if medium["bytes"] is not None:
            facts["member"] = f"{number}.{file_ending(medium)}"
            yield f"{key}.{facts['member']}", medium["bytes"]
        described.append(facts)
    columns = {name: row.get(name) for name in ROW_SCHEMA.names if row.get(name) is not None}
    yield f"{key}.json", json.dumps(columns | {"media": described}, ensure_ascii=False).encode()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member with the same header on every machine and day."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))
    tar.members = []  # the module keeps them all, for a list that nobody asks for
