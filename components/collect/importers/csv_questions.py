"""A folder of images and a CSV or TSV of questions and answers: ``image,question,answer[,split,id,task,...]``."""

import csv
from collections.abc import Iterator
from typing import Any, BinaryIO

from components.collect.importers.cells import record_of, resolve
from components.collect.importers.config import CsvSource
from components.collect.importers.record import Record, Refusal, parsed
from components.collect.importers.root import SourceRoot, lines
from model.data.errors import InputError

DEFAULT_TASK = "answer"
ENDINGS = (".csv", ".tsv")


def records(source: CsvSource, root: SourceRoot, notes: dict[str, Any]) -> Iterator[Record]:
    """Every record of every file; paths in it are relative to the file's directory.

    Raises:
        InputError: a file has no header, or lacks a column that it needs.
    """
    for file in root.files(lambda name: name.lower().endswith(ENDINGS), source.file):
        base = (root.path / file).parent
        with root.stream(file) as stream:
            rows = csv_rows(stream, file, source.max_row_bytes)
            header = next(rows)[1]
            columns = resolve(source.columns, header, file)

            def parse(
                row: list[str], place: str, header: list = header, columns: dict = columns, base: Any = base
            ) -> Record:
                if len(row) != len(header):
                    raise Refusal(f"{len(row)} fields; the header has {len(header)}")
                cells = dict(zip(header, row, strict=True))
                return record_of(cells, columns, place, prompt=source.prompt, split=None, base=base)

            yield from parsed(rows, parse)


def csv_rows(stream: BinaryIO, file: str, limit: int) -> Iterator[tuple[str, Any]]:
    """(``file:line``, fields) of each record, the header first; a ``Refusal`` for one that is broken or no UTF-8.

    Raises:
        InputError: there is no header that can be read.
    """
    delimiter = "\t" if file.lower().endswith(".tsv") else ","
    csv.field_size_limit(min(limit, (1 << 31) - 1))  # the module's own limit, and its only one, is 128 KiB
    reader = csv.reader(_text_lines(stream, limit), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        first = reader.line_num + 1
        try:
            value: Any = next(reader)
        except StopIteration:
            if header is None:
                raise InputError(f"{file}: empty; it needs a header line with the names of its columns") from None
            return
        except csv.Error as error:
            until = f", lines {first} to {reader.line_num}" if reader.line_num > first else ""
            value = Refusal(f"broken CSV: {error}{until}")
        if not isinstance(value, Refusal) and any("\udc80" <= sign <= "\udcff" for sign in "".join(value)):
            value = Refusal("not UTF-8")
        if header is None:
            if isinstance(value, Refusal) or len(set(value)) != len(value):
                raise InputError(f"{file}: the header is broken, not UTF-8, or names a column twice")
            header = value
        yield f"{file}:{first}", value


def _text_lines(stream: BinaryIO, limit: int) -> Iterator[str]:
    """Lines with bytes that are no UTF-8 as half surrogates; one over the limit as a line that no CSV can have."""
    for _, line in lines(stream, limit, blank=True):
        yield _TOO_LONG if line is None else line.decode("utf-8", "surrogateescape") + "\n"


_TOO_LONG = '"a line over max_row_bytes"x\n'
