"""What a finished line found, gathered from the outputs of its steps: for the summary and the report."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli import charts
from cli.curves import StageScore, Trend
from cli.line import Line
from cli.report import Example, FlashScore, Measures, Report
from cli.stage_curves import stage_pictures
from cli.summary import HeldoutScore, StageSummary, Summary
from components.predictions import read_predictions
from components.routing_examples import read_examples
from components.scoring_table import score_row
from model.data.errors import InputError
from model.data.schema import Row
from model.data.shards import open_dataset
from model.flash.picture import snippet
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
    training = [(step, stage_pictures(step, lineage)) for step, lineage in line.lineage.items()]
    return Report(
        profile=profile,
        summary=summary,
        training=[(step, pictures) for step, pictures in training if pictures],
        trends=trends(summary),
        flash=_flash(line.lineage),
        measures=measures_of(line.lineage["route"]["numbers"]) if "route" in line.lineage else None,
        kept=line.lineage["evaluate"]["numbers"].get("visual_tokens_kept"),
        routed=routed_figures(line.output("collect", "heldout"), line.output("evaluate", "evaluation")),
        funnel=_funnel(line.lineage["curate"]["numbers"]),
        lineage=_nodes(line),
        examples=_examples(line),
        facts=_facts(line),
    )


def trends(summary: Summary) -> list[Trend]:
    """Held-out scores after every training stage from fine-tuning on, a family each and the mean of them first.

    Empty where there is but one such stage. Every stage scores the same rows.
    """
    stages = [stage for stage in summary.stages if stage.heldout and stage.name not in ("pretrain", "evaluate")]
    if len(stages) < 2:
        return []
    families = [family for family in stages[0].heldout if all(family in stage.heldout for stage in stages)]
    found = []
    for family in families:
        scores = [(stage.name, stage.heldout[family]) for stage in stages]
        points = [StageScore(name, score.score, score.low, score.high) for name, score in scores]
        found.append(Trend(family, points, scores[0][1].constant))
    means = [_mean_score(stage.name, [stage.heldout[family] for family in families]) for stage in stages]
    return [Trend("mean of the families", means), *found] if len(families) > 1 else found


def _flash(lineage: Mapping[str, dict[str, Any]]) -> list[FlashScore]:
    """What routing costs and saves, as the step ``route`` measured it."""
    if "route" not in lineage:
        return []
    routed, values = lineage["route"]["heldout"], lineage["route"]["values"]
    compressed = lineage["vico"]["values"]["compressed"] if "vico" in lineage else {}
    return [
        FlashScore(family, full, routed[family]["score"], values["kept"].get(family), compressed.get(family))
        for family, full in values["full"].items()
    ]


def measures_of(numbers: Mapping[str, float]) -> Measures | None:
    """The comparison of both measures among the numbers of the step ``route``; None where it made none."""
    found = {key.removeprefix("measures_"): value for key, value in numbers.items() if key.startswith("measures_")}
    if not found:
        return None
    kinds = ("image", "tile")
    return Measures(
        tiles=int(found["tiles"]),
        shares={kind: found[f"{kind}_compress_share"] for kind in (*kinds, "router")},
        router={kind: found[f"router_agreement_{kind}"] for kind in kinds},
        agreement=found["agreement"],
        agreement_many=found.get("agreement_many"),
        correlation=found.get("correlation"),
    )


def routed_figures(heldout: Path, evaluation: Path) -> list[str]:
    """The rows that ``evaluate`` kept with the decision on every tile, all images of each drawn."""
    rows = list(open_dataset(heldout).rows())
    answers = read_predictions(evaluation).answers
    figures = []
    for index, images in read_examples(evaluation, rows):
        question = question_of(rows[index])
        figures.append(snippet(images, question.text, answers[index], question.truth))
    return figures


def _mean_score(stage: str, scores: Sequence[HeldoutScore]) -> StageScore:
    """Mean over families, whose errors are independent: the half-widths of their intervals add as squares."""
    mean = sum(score.score for score in scores) / len(scores)
    below = math.sqrt(sum((score.score - score.low) ** 2 for score in scores)) / len(scores)
    above = math.sqrt(sum((score.high - score.score) ** 2 for score in scores)) / len(scores)
    return StageScore(stage, mean, mean - below, mean + above)


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
