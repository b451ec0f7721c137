"""``fovea data check``: whether a dataset is what it says."""

import json
from pathlib import Path
from typing import Annotated

import typer

_MOST = 100


def check(
    directory: Annotated[Path, typer.Argument(help="Dataset directory.")],
    machine: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Verify the hashes, the schema, every row and every medium; one line for each problem.

    Exits with 1 if there is a problem.

    Example: `fovea data check out/line/curate/questions`
    """
    from model.data.checking import Checked, problems
    from scoring.score import score_answer

    checked, count, shown = Checked(), 0, []
    for problem in problems(directory, lambda *asked: score_answer(*asked).value, checked):
        count += 1
        if count <= _MOST:
            line = "".join(character if character.isprintable() else " " for character in problem)
            shown.append(line)
            if not machine:
                print(line)
    facts = {"rows": checked.rows, "media": checked.media, "media_not_opened": checked.elsewhere, "problems": count}
    if machine:
        print(json.dumps({"dataset": str(directory), **facts, "first_problems": shown}))
    elif count > _MOST:
        print(f"and {count - _MOST:,} more problems")
    elif not count:
        note = f"; {checked.elsewhere:,} media lie at addresses that were not opened" if checked.elsewhere else ""
        print(f"{directory}: sound: {checked.rows:,} rows, {checked.media:,} media{note}")
    if count:
        raise typer.Exit(1)
