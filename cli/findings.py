"""What a finished line found, gathered from the outputs of its steps: for the summary and the report."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli import charts
from cli.line import Line
from cli.report import Example, Report
from cli.summary import HeldoutScore, StageSummary, Summary
from components.predictions import read_predictions
from components.scoring_table import score_row
from model.data.errors import InputError
from model.data.schema import Row
from model.data.shards import open_dataset
from scoring.boxes import parse_box

_RIGHT_PER_FAMILY, _WRONG_PER_FAMILY = 2, 1
_OPERATORS = {
    "schema": "well-formed",
    "image": "decodable",
    "duplicate": "unique",
    "near_duplicate": "no near-duplicate",
    "contaminated": "not in held-out",
}
"""What is true of the rows that each operator of curation leaves, in its order."""


@dataclass(frozen=True)
class Question:
    """A held-out row as it is asked: its image's bytes, the question without placeholder, the reference."""

    image: bytes
    text: str
    truth: str


def stage_summaries(line: Line) -> list[StageSummary]:
    """One entry a step, in the order of the line."""
    return [_stage_summary(record, line.lineage[record["step"]]) for record in line.run.steps]


def _stage_summary(record: dict[str, Any], lineage: dict[str, Any]) -> StageSummary:
    fields = HeldoutScore.model_fields
    scores = {
        family: HeldoutScore(**{name: score[name] for name in fields}) for family, score in lineage["heldout"].items()
    }
    tokens = lineage["numbers"].get("tokens")
    return StageSummary(
        name=record["step"],
        seconds=round(record["seconds"], 3),
        tokens=None if tokens is None else int(tokens),
        loss=lineage["numbers"].get("loss"),
        heldout=scores,
    )


def question_of(row: Row) -> Question:
    """What a user would ask about the row's image."""
    text = next(message["content"] for message in row["messages"] if message["role"] == "user")
    return Question(row["media"][0]["bytes"], text.replace("<image>", "").strip(), row["answers"][0])


def first_question(line: Line) -> Question:
    """The first held-out row of the first family that fine-tuning teaches: nobody picks a flattering one."""
    taught = {row["task"] for row in open_dataset(line.output("curate", "questions")).rows()}
    rows = open_dataset(line.output("collect", "heldout")).rows()
    found = next((row for row in rows if row["task"] in taught and row["media"]), None)
    if found is None:
        raise InputError("no held-out row with an image asks what fine-tuning teaches; nothing to ask the gateway")
    return question_of(found)


def report_of(line: Line, summary: Summary, profile: str) -> Report:
    """Everything the page shows."""
    losses = [
        (step, [(entry["step"], entry["loss"]) for entry in lineage["history"] if "loss" in entry])
        for step, lineage in line.lineage.items()
        if lineage["history"]
    ]
    return Report(
        profile=profile,
        summary=summary,
        losses=losses,
        funnel=_funnel(line.lineage["curate"]["numbers"]),
        lineage=_nodes(line),
        examples=_examples(line),
        facts=_facts(line),
    )


def _funnel(numbers: Mapping[str, float]) -> list[tuple[str, int, str]]:
    """Rows that each operator left, and how they were split."""
    left = int(numbers["rows_in"])
    levels = [("collected", left, "")]
    further = sorted(key.removeprefix("rejected_") for key in numbers if key.startswith("rejected_"))
    names = _OPERATORS | {reason: reason.replace("_", " ") for reason in further if reason not in _OPERATORS}
    for reason, name in names.items():
        rejected = int(numbers.get(f"rejected_{reason}", 0))
        left -= rejected
        levels.append((name, left, f"{rejected:,} rejected" if rejected else ""))
    levels.append(("to pre-training", int(numbers["transcriptions"]), ""))
    levels.append(("to fine-tuning", int(numbers["questions"]), ""))
    return levels


def _nodes(line: Line) -> list[charts.LineageNode]:
    """The steps with short hashes; an edge where a step read what another made."""
    makers: dict[str, str] = {}
    nodes = []
    for record in line.run.steps:
        step, lineage = record["step"], line.lineage[record["step"]]
        parents = sorted({makers[sha] for sha in lineage["inputs"].values() if sha in makers})
        how = "from the store" if record["cached"] else f"{record['seconds']:.1f} s"
        run = lineage["mlflow"].get("run_id", "")
        detail = f"{how}, code {lineage['code_version'][:8]}, MLflow run {run[:8]}"
        outputs = [(name, sha[:12]) for name, sha in lineage["outputs"].items()]
        nodes.append(charts.LineageNode(step, detail, outputs, parents))
        makers |= dict.fromkeys(lineage["outputs"].values(), step)
    return nodes


def _examples(line: Line) -> list[Example]:
    """The first held-out rows of each family that were answered rightly, and the first that were not."""
    rows = list(open_dataset(line.output("collect", "heldout")).rows())
    answers = read_predictions(line.output("evaluate", "evaluation")).answers
    wanted: dict[tuple[str, bool], int] = {}
    examples = []
    for row, answer in zip(rows, answers, strict=True):
        right = score_row(row, answer).value >= 1
        key = (row["task"], right)
        most = _RIGHT_PER_FAMILY if right else _WRONG_PER_FAMILY
        if row["media"] and wanted.get(key, 0) < most:
            wanted[key] = wanted.get(key, 0) + 1
            examples.append(_example(row, answer, right))
    return examples


def _example(row: Row, answer: str, right: bool) -> Example:
    question = question_of(row)
    kind = (row["media"][0]["format"] or "png").lower()
    image = f"data:image/{kind};base64,{base64.b64encode(question.image).decode()}"
    return Example(row["task"], image, question.text, answer, question.truth, right, _boxes(row, answer))


def _boxes(row: Row, answer: str) -> list[tuple[str, float, float, float, float]]:
    """The boxes that the reference and the answer name, where the row asks for one."""
    if row["scorer"]["name"] != "box_iou":
        return []
    named = (("truth", parse_box(row["answers"][0])), ("answer", parse_box(answer)))
    return [(kind, box[0], box[1], box[2] - box[0], box[3] - box[1]) for kind, box in named if box is not None]


def _facts(line: Line) -> Sequence[tuple[str, str]]:
    """Where and from what the newest step of the line was made."""
    newest = line.lineage[line.run.steps[-1]["step"]]
    cpu = newest["environment"]["cpu"]
    return (
        ("run", line.run.run_id),
        ("commit", newest["git_sha"]),
        ("lock", newest["lock_sha256"][:12]),
        ("Python", newest["environment"]["python"]),
        ("processor", f"{cpu['model']}, {newest['environment']['threads']} threads"),
        ("log", str(Path("runs") / line.run.run_id / "log.txt")),
    )
