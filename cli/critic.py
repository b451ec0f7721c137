"""``fovea critic``: data to train a critic on, which chooses among several answers."""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.data.errors import InputError
from scoring.judge import Judges, Request

if TYPE_CHECKING:
    from model.critic.labels import Judged, LabelSettings
    from model.data.schema import Reject, Row
    from model.training.rollout import RolloutEngine

_PART_ROWS = 32
"""Rows that are labelled between two savings; a kill loses at most these."""
_CORRECT_ABOVE = 0.9
_SHOWN_FAILURES = 3

application = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Make the data that a critic is trained on.\n\n"
    "Example: `fovea critic data out/line/curate/questions out/line/sft/model critic-rows`",
)


@application.command()
def data(
    rows: Annotated[Path, typer.Argument(help="Dataset of questions with scorers.")],
    model: Annotated[Path, typer.Argument(help="Model directory of the policy.")],
    output: Annotated[Path, typer.Argument(help="Dataset directory to make.")],
    solutions: Annotated[int, typer.Option(min=1, help="Sampled for each question.")] = 4,
    continuations: Annotated[int, typer.Option(min=1, help="Sampled for each step of a solution.")] = 16,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest solution, and longest continuation.")] = 4096,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first so many questions.")] = None,
    think: Annotated[bool, typer.Option("--think", help="Solve with the published thinking prompt.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
) -> None:
    """Solve questions, continue every step of the solutions, and label a step right when a continuation is.

    The result trains a critic like any other dataset: `fovea stage sft --input rows=critic-rows ...`. Killed, the same
    command continues.

    Example: `fovea critic data out/line/curate/questions out/line/sft/model critic-rows --limit 200`
    """
    from itertools import islice

    from model.critic.labels import LabelSettings
    from model.data.artifact import payload_sha256
    from model.data.shards import open_dataset
    from model.data.thinking import thinking_row
    from model.training.sampling import Sampling

    if output.exists():
        raise InputError(f"{output}: exists already")
    questions = [thinking_row(row, boxed=True) if think else row for row in islice(open_dataset(rows).rows(), limit)]
    sampling = Sampling(temperature=1.0, max_new_tokens=max_tokens)
    settings = LabelSettings(solutions, continuations, sampling=sampling, seed=seed)
    engine = _engine(model)
    origin = {"rows": payload_sha256(rows), "model": payload_sha256(model), "limit": limit, "think": think}
    made, rejects = label_dataset(output, questions, engine, settings, origin)
    print(f"{output}: {made} solutions labelled, {rejects} rejects")


def label_dataset(
    output: Path,
    questions: "Sequence[Row]",
    engine: "RolloutEngine",
    settings: "LabelSettings",
    origin: dict[str, object],
) -> tuple[int, int]:
    """Write the dataset ``output`` part by part; the parts stand in ``<output>.parts`` until it is complete.

    Args:
        output: must not exist.
        questions: rows with scorers.
        engine: the policy.
        settings: solutions, continuations, sampling.
        origin: what else the parts depend on.

    Returns:
        The numbers of its rows and of its rejects.

    Raises:
        InputError: there are parts of another origin or settings.
    """
    from model.critic.labels import critic_rows
    from model.data.artifact import write_atomic
    from model.data.shards import open_dataset, write_dataset

    parts = output.with_name(f"{output.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    identity = json.dumps({**origin, **asdict(settings)}, sort_keys=True).encode()
    if (parts / "origin.json").exists() and (parts / "origin.json").read_bytes() != identity:
        raise InputError(f"{parts}: left by a run with other rows, model or settings; remove it to start anew")
    write_atomic(parts / "origin.json", identity)
    failures = list[str]()
    places = [parts / f"{start:08d}" for start in range(0, len(questions), _PART_ROWS)]
    with closing(Judges()) as judges:
        for number, place in enumerate(places):
            if not place.exists():
                chunk = questions[number * _PART_ROWS : (number + 1) * _PART_ROWS]
                made, rejects = critic_rows(engine, chunk, _judged_by(judges, failures), settings)
                write_dataset(place, made, rejects=rejects)
            print(f"labelled {min((number + 1) * _PART_ROWS, len(questions))} of {len(questions)}", file=sys.stderr)
    if failures:
        first = "; ".join(dict.fromkeys(failures[:_SHOWN_FAILURES]))
        print(f"fovea: {len(failures)} answers could not be judged, and label nothing: {first}", file=sys.stderr)
    done = [open_dataset(place) for place in places]
    left_out: list[Reject] = [reject for part in done for reject in part.rejects()]

    def all_rows() -> "Iterator[Row]":
        for part in done:
            yield from part.rows()

    dataset = write_dataset(output, all_rows(), rejects=left_out)
    shutil.rmtree(parts)
    return len(dataset), len(left_out)


def _judged_by(judges: Judges, failures: list[str]) -> "Judged":
    """Right and wrong by the rows' own scorers, as for preference data: right is what scores above 0.9. Why one could
    not be judged is added to ``failures``."""

    def judged(answers: "Sequence[tuple[Row, str]]") -> list[bool | None]:
        verdicts = judges.ask(
            [Request(row["scorer"]["name"], row["scorer"]["parameters"], text, row["answers"]) for row, text in answers]
        )
        for (row, _), verdict in zip(answers, verdicts, strict=True):
            if verdict.fault is not None:
                raise InputError(f"row {row['id']}: {verdict.fault}")
            if verdict.failed is not None:
                failures.append(f"row {row['id']}: {verdict.failed}")
        return [None if verdict.failed is not None else verdict.value > _CORRECT_ABOVE for verdict in verdicts]

    return judged


def _engine(model: Path) -> "RolloutEngine":
    import torch

    from model.families.opening import load_network, load_processor
    from model.training.rollout import NetworkSampler

    cuda = torch.cuda.is_available()
    dtype, device = (torch.bfloat16, "cuda") if cuda else (torch.float32, "cpu")
    return NetworkSampler(load_network(model, dtype=dtype, device=device), load_processor(model))


def mount(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(application, name="critic")
