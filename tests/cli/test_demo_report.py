"""The demo's report and summary, from made-up numbers."""

import base64
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from cli import charts
from cli.curves import Line, Trend, curves, scores_over_stages, shares_over_steps, small_multiples
from cli.findings import measures_of, trends
from cli.report import Example, FlashScore, Measures, Report, render, write_report
from cli.stage_curves import RATIO_EDGES, stage_pictures
from cli.summary import Answer, DvcLock, HeldoutScore, RegistryEntry, StageSummary, Summary


def score(value, swapped=0.1):
    return HeldoutScore(score=value, low=value - 0.06, high=value + 0.05, n=250, constant=0.12, swapped=swapped)


def stage(name, tokens=None, loss=None, heldout=None):
    return StageSummary(name=name, seconds=12.3, tokens=tokens, loss=loss, heldout=heldout or {})


@pytest.fixture
def summary():
    families = {"read": score(0.87), "count": score(0.73), "maximum": score(0.89), "locate": score(0.59)}
    return Summary(
        stages=[
            stage("collect"),
            stage("pretrain", 1_228_800, 0.21, {"transcribe": score(0.92, None)}),
            stage("sft", 900_000, 0.11, families),
            stage("gspo", 90_000, 0.0, {family: score(found.score + 0.05) for family, found in families.items()}),
            stage("evaluate", heldout=families),
        ],
        answer=Answer(
            question="What is the largest digit?", answer="9", truth="9", endpoint="http://127.0.0.1:8000/v1"
        ),
        registry=RegistryEntry(name="fovea", version=3, alias="champion"),
        dvc=DvcLock(lock_sha256="ab" * 32),
        wall_seconds=41.2,
        cached_steps=["collect", "pretrain"],
    )


def image_uri():
    stream = io.BytesIO()
    Image.radial_gradient("L").resize((56, 56)).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


@pytest.fixture
def report(summary):
    right = Example("maximum", image_uri(), "What is the largest digit?", "9", "9", True)
    boxes = [("truth", 100, 100, 300, 300), ("answer", 150, 120, 300, 300)]
    hostile = Example("read", image_uri(), "Read <b>all</b> digits.", "<script>alert(1)</script>", "4 2", False, boxes)
    nodes = [
        charts.LineageNode("collect", "12 s", [("corpus", "3f2a9c01"), ("tokenizer", "0c")], []),
        charts.LineageNode("curate", "3 s, cached", [("transcriptions", "99"), ("questions", "8d")], ["collect"]),
        charts.LineageNode("pretrain", "155 s", [("model", "5c0ffee0")], ["curate", "collect"]),
    ]
    loss = charts.loss_curve("pretrain", [(step, 6.0 / (1 + step / 20)) for step in range(0, 1200, 10)])
    training = [("pretrain", [loss]), ("mpo", [loss, charts.loss_curve("margin", [])])]
    funnel = [("collected", 54_000, ""), ("decodable", 53_990, "10 left"), ("kept", 51_000, "")]
    return Report(
        "tiny",
        summary,
        training,
        trends=trends(summary),
        flash=[FlashScore("read", 0.88, 0.87, 0.5, 0.4), FlashScore("text", 0.5, 0.5, None, None)],
        measures=Measures(
            96, {"image": 0.49, "tile": 0.51, "router": 0.32}, {"image": 0.61, "tile": 0.74}, 0.83, 0.77, 0.66
        ),
        kept=0.5,
        routed=["<figure>an image in its tiles</figure>"],
        funnel=funnel,
        lineage=nodes,
        examples=[right, hostile],
        facts=[("commit", "0123abcd")],
    )


class Balance(HTMLParser):
    """Counts elements that are opened and never closed."""

    VOID = {"meta", "img", "br", "circle", "line", "rect", "path", "polyline"}

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_report_is_one_well_formed_file_that_loads_nothing_from_elsewhere(report):
    page = render(report)
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    loads = re.findall(r'(?:src|href)="([^"]*)"', page) + re.findall(r"url\(([^)]*)\)|@import", page)
    assert loads and all(target.startswith("data:") for target in loads)
    assert "<script" not in page


def test_report_compares_both_measures_of_a_tile(report):
    page = render(report)
    assert "96 tiles that the router has not learned from, both labels agree in 83 % (77 % where" in page
    assert "correlation of their ranks is 0.66" in page
    assert "<td>by image</td><td>49 %</td><td>61 %</td>" in page and "<td>one by one</td><td>51 %</td><td>74 %" in page
    assert "<td>router</td><td>32 %</td>" in page
    assert "tiles that the router has not learned from" not in render(replace(report, measures=None))


def test_the_comparison_is_read_from_what_the_step_wrote():
    from model.training.measures import MeasuredTiles

    ratios = np.arange(4.0)
    measured = MeasuredTiles(ratios, ratios[::-1], np.ones(4), np.array([0.9, 0.1, 0.1, 0.1]))
    found = measures_of(measured.report(50, 0.5))
    assert (found.tiles, found.agreement, found.agreement_many, found.correlation) == (4, 0, None, -1)
    assert found.shares == {"image": 0.5, "tile": 0.5, "router": 0.25} and found.router == {"image": 0.75, "tile": 0.25}
    assert measures_of({"loss": 0.1}) is None


def test_the_correlation_of_two_measures_is_spearmans_where_tiles_of_an_image_share_a_ratio(rng):
    from scipy.stats import spearmanr

    from model.training.measures import MeasuredTiles

    by_image, by_tile = np.repeat(rng.normal(size=6), 3), rng.normal(size=18).round(1)
    found = MeasuredTiles(by_image, by_tile, np.full(18, 3), np.full(18, 0.5)).report(50, 0.5)
    assert found["measures_correlation"] == pytest.approx(spearmanr(by_image, by_tile).statistic)


def test_report_shows_what_a_model_says_as_text(report):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in render(report)


@pytest.mark.parametrize(
    "picture",
    [
        charts.loss_curve("sft", [(1, 3.0), (2, float("nan")), (3, 0.5)]),
        charts.loss_curve("one point", [(1, 0.5)]),
        charts.loss_curve("nothing", []),
        curves("one & the same", [Line("a", [(1, 0.5), (2, 0.5)]), Line("gone", [(1, float("nan"))])]),
        curves("nothing", []),
        shares_over_steps("nothing", ["a"], [], within=(0, 0)),
        small_multiples("none of it", ["a & b"], [("<a family of a long name>", [Line("a", [])])]),
        scores_over_stages(Trend("none", [])),
        charts.score_bars([]),
        charts.funnel([("a & b", 0, "<")]),
        charts.lineage_graph([]),
    ],
)
def test_charts_are_xml_for_the_smallest_inputs(picture):
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert "nan" not in picture


def test_the_mean_over_families_has_a_narrower_interval_than_each_of_them(summary):
    mean, *families = trends(summary)
    assert [score.stage for score in mean.scores] == ["sft", "gspo"]
    assert [trend.family for trend in families] == ["read", "count", "maximum", "locate"]
    first = mean.scores[0]
    assert first.score == pytest.approx(sum(trend.scores[0].score for trend in families) / 4)
    assert first.high - first.low == pytest.approx((families[0].scores[0].high - families[0].scores[0].low) / 2)


def test_a_line_with_one_tuned_model_has_no_trend(summary):
    stages = [stage for stage in summary.stages if stage.name != "gspo"]
    assert trends(summary.model_copy(update={"stages": stages})) == []


def test_pictures_of_a_policy_show_its_families_and_where_ratios_are_clipped():
    bins = {f"ratio_histogram/{number:02d}": 1 / 15 for number in range(15)}
    judged = {"reward": 0.4, "accuracy": 0.5, "reward/read": 0.6, "reward/count": 0.2, "length": 9.0}
    history = [{"step": step, "loss": -1e-5, **judged, **bins} for step in range(1, 20)]
    config = {"objective": {"epsilon_low": 3e-4, "epsilon_high": 4e-4}}
    pictures = stage_pictures("gspo", {"history": history, "config": config})
    titles = [ElementTree.fromstring(picture).get("aria-label").split(":")[0] for picture in pictures]
    assert titles == [
        "sampled answers",
        "by family",
        "tokens of an answer",
        "importance ratio minus 1, over steps",
    ]
    said = [part.text for part in ElementTree.fromstring(pictures[1]) if part.tag.endswith("text")]
    assert said == ["by family", "reward", "0.2\u20130.6", "0.2", "0.6", "count", "read"]
    frame = [rect for rect in ElementTree.fromstring(pictures[-1]) if rect.get("stroke") is not None]
    assert [rect.get("height") for rect in frame] == ["39"]  # three bins of 13 lie between -3e-4 and 4e-4


@pytest.mark.parametrize(("epsilon", "frames"), [(9e-5, 0), (1e-4, 1), (3e-4, 1)])
def test_a_clip_range_within_one_bin_is_drawn_without_a_frame(epsilon, frames):
    history = [{"step": 1, "loss": 0.0, "reward": 0.5, "ratio_histogram/07": 1.0, "ratio_histogram/00": 0.0}]
    config = {"objective": {"epsilon_low": epsilon, "epsilon_high": epsilon}}
    *_, picture = stage_pictures("gspo", {"history": history, "config": config})
    drawn = ElementTree.fromstring(picture)
    assert len([rect for rect in drawn if rect.get("stroke") is not None]) == frames


def test_every_family_has_its_own_curves_however_many_there_are():
    names = [f"family-{number:02d}" for number in range(12)]
    history = []
    for step in range(1, 301):
        shares = {f"{kind}/{name}": step / 300 for name in names for kind in ("reward", "accuracy", "length")}
        # Families that nothing was learned from in most steps: curves with gaps, and one that has none.
        learned = {f"{kind}/{name}": 0.5 for name in names[step % 11 :: 11] for kind in ("entropy", "clipped")}
        learned.pop("entropy/family-00", None)
        history.append({"step": step, "loss": 0.0, "reward": 0.5, **shares, **learned})
    pictures = stage_pictures("gspo", {"history": history, "config": {}})
    (drawn,) = [ElementTree.fromstring(picture) for picture in pictures if "by family" in picture]
    assert drawn.get("aria-label") == "by family: reward, accuracy, length, entropy, clipped"
    assert len([part for part in drawn if part.tag.endswith("polyline")]) == 12 * 5 - 1
    assert len(max(pictures, key=len)) < 100_000


def test_the_bins_of_ratios_are_those_that_training_counts():
    from model.training import policy_memory

    assert policy_memory.RATIO_EDGES == RATIO_EDGES


@pytest.mark.parametrize(
    ("step", "keys", "titles"),
    [
        ("mpo", ("preference", "quality", "generation", "chosen_reward", "rejected_reward", "margin", "accuracy"), 5),
        ("vico", ("divergence_compressed",), 2),
        ("route", ("compress_share", "agreement", "log_ratio", "threshold"), 3),
        ("sft", (), 1),
    ],
)
def test_each_stage_shows_its_own_curves(step, keys, titles):
    history = [{"step": number, "loss": 1.0, **dict.fromkeys(keys, 0.5)} for number in range(1, 6)]
    assert len(stage_pictures(step, {"history": history, "config": {}})) == titles


def test_summary_has_the_published_fields_and_no_others(summary, tmp_path):
    summary.write(tmp_path / "demo" / "summary.json")
    written = json.loads((tmp_path / "demo" / "summary.json").read_text())
    fields = {"schema_version", "stages", "answer", "registry", "dvc", "wall_seconds", "cached_steps"}
    assert set(written) == fields
    assert set(written["stages"][1]) == {"name", "seconds", "tokens", "loss", "heldout"}
    heldout = written["stages"][1]["heldout"]["transcribe"]
    assert set(heldout) == {"score", "low", "high", "n", "constant", "swapped"}
    assert set(written["answer"]) == {"question", "answer", "truth", "endpoint"}
    assert set(written["registry"]) == {"name", "version", "alias"}
    assert Summary.model_validate(written) == summary
    with pytest.raises(ValidationError):
        Summary.model_validate(written | {"schema_version": 2})


def test_report_is_written_whole(report, tmp_path):
    write_report(report, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().rstrip().endswith("</html>")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_the_hint_to_the_runs_shows_no_password():
    from cli.demo import _how_to_see_runs

    assert _how_to_see_runs("https://me:secret@mlflow.example/x") == "https://***@mlflow.example/x"
    assert _how_to_see_runs("sqlite:////a/mlflow.db").endswith("mlflow ui --backend-store-uri sqlite:////a/mlflow.db")
