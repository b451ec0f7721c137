"""Which rows a training step reads more or less often than its dataset holds them."""

from collections.abc import Mapping, Sequence

from model.data.errors import InputError
from model.data.schema import Row


def repeated(rows: Sequence[Row], factors: Mapping[str, float], setting: str) -> list[Row]:
    """Every family's rows as often as its factor says, which is 1 where there is none; a fraction is spread evenly.

    Args:
        rows: of any families.
        factors: by family.
        setting: the name of the factors, for messages.

    Raises:
        InputError: a factor is that of no family, or nothing is left.
    """
    if not factors:
        return list(rows)
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row["task"], []).append(row)
    for task in factors:
        if task not in families:
            raise InputError(f"{setting}: no rows of the family {task!r}; there are {', '.join(sorted(families))}")
    kept: list[Row] = []
    for task, group in families.items():
        whole, part = divmod(factors.get(task, 1.0), 1)
        kept += group * int(whole) + evenly(group, round(part * len(group)))
    if not kept:
        raise InputError(f"{setting}: leaves no rows")
    return kept


def mixed(questions: Sequence[Row], transcriptions: Sequence[Row], share: float) -> list[Row]:
    """As many rows of both as ``share``, of the transcriptions, allows: those of which there are too many are thinned
    evenly. A share of 0 is all questions.

    Raises:
        InputError: there are no questions, or no transcriptions.
    """
    if not share:
        return list(questions)
    for name, given in (("questions", questions), ("transcriptions", transcriptions)):
        if not given:
            raise InputError(f"vico.transcription_share: there are no {name} to mix")
    ratio = share / (1 - share)
    fewer = max(1, round(min(len(questions), len(transcriptions) / ratio)))
    return evenly(transcriptions, min(len(transcriptions), max(1, round(fewer * ratio)))) + evenly(questions, fewer)


def evenly(rows: Sequence[Row], number: int) -> list[Row]:
    """``number`` rows, at most all, from all over the dataset: its families may stand one after the other."""
    return [rows[index * len(rows) // number] for index in range(number)]
