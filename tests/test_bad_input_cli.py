"""A user's mistakes on the command line: each is one clear line, a non-zero exit, no traceback. All in this process."""

import json
import re

import pytest
from typer.testing import CliRunner

from cli.main import app
from model.data.shards import write_dataset


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty directory to work in, with params.yaml for the profile micro."""
    monkeypatch.chdir(tmp_path)
    for name in ("FOVEA_OUT", "FOVEA_STORE", "FOVEA_STATE_ROOT", "FOVEA_RUN_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "params.yaml").write_text("profile: micro\n")
    return tmp_path


def complaint(*arguments):
    """The one line that the command says."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code not in (0, None), result.output
    assert isinstance(result.exception, SystemExit), result.exception
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("fovea: error: ")
    assert result.stdout == ""
    return lines[0].removeprefix("fovea: error: ")


def row():
    """A text-only row."""
    said = [{"role": "user", "content": "One and one?"}, {"role": "assistant", "content": "2"}]
    empty = dict.fromkeys(("chosen", "rejected", "steps", "words"))
    scorer = {"name": "exact", "parameters": "{}"}
    row = {"id": "a", "source": "test", "license": "CC0-1.0", "media": [], "messages": said, "task": "sum"}
    return {**row, "answers": ["2"], "scorer": scorer, **empty}


@pytest.mark.parametrize("command", ["run", "demo", "compile"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--profile", "huge"], r"no profile is named 'huge'; profiles: .*micro"),
        (["--profile", "mine.yaml"], r"mine\.yaml: No such file"),
        (["--set", "sft.training.speed=3"], r"sft\.training\.speed: unknown key"),
        (
            ["--set", "sft.training.learning_rate=-1e-4"],
            r"learning_rate: .*greater than 0, not -0\.0001",
        ),
        (["--set", "sft.training.steps=many"], r"sft\.training\.steps: .*integer, not 'many'"),
        (["--set", "sft"], r"write key=value"),
        (["--set", "line=[collect, quantize]"], r"line: stage quantize has no section"),
        (["--set", "line=[collect, curate]"], r"line: the pipeline train does not go without pretrain"),
    ],
)
def test_wrong_profile(command, options, words):
    assert re.search(words, complaint(command, *options))


def test_a_stage_that_is_not_built_is_refused_by_name(place):
    quantize = {"scheme": "W4A16", "calibration_rows": 512, "max_tokens": 2048}
    profile = {"extends": "micro", "line": ["collect", "curate", "pretrain", "sft", "quantize"], "quantize": quantize}
    (place / "ahead.yaml").write_text(json.dumps(profile))
    assert "stage quantize is described by this profile but not built yet" in complaint(
        "run", "--profile", "ahead.yaml"
    )


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ("profile: micro\nspeed: fast\n", r"params\.yaml: speed: unknown key"),
        (
            "profile: micro\noverrides: {sft: {training: {steps: -1}}}\n",
            r"params\.yaml: overrides\.sft",
        ),
        ("profile: [\n", r"params\.yaml: line "),
        ("", r"params\.yaml: "),
    ],
)
def test_wrong_params_file(place, params, words):
    (place / "params.yaml").write_text(params)
    assert re.search(words, complaint("run"))


def test_no_params_file(place):
    (place / "params.yaml").unlink()
    assert "--profile" in complaint("run")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["polish"], r"no stage is named 'polish'"),
        (["quantize"], r"quantize is described .*not built yet; built: collect"),
        (["sft"], r"--input rows=DIR is missing"),
        (["sft", "--input", "rows"], r"'rows': write name=DIR"),
        (["sft", "--input", "corpus=x"], r"corpus: step sft has the inputs rows, heldout, init"),
        (["collect", "--input", "corpus=x"], r"corpus: step collect has the inputs none"),
        (["evaluate", "--input", "model=a", "--input", "model=b"], r"model: given twice"),
        (
            ["evaluate", "--input", "model=nowhere", "--input", "heldout=h", "--output", "evaluation=e"],
            r"nowhere: no such directory",
        ),
    ],
)
def test_wrong_stage(arguments, words):
    assert re.search(words, complaint("stage", *arguments))


def test_a_model_directory_that_is_not_there_or_half_written(place):
    rows = place / "rows"
    write_dataset(rows, [row()])
    assert "nowhere: no model directory" in complaint("evaluate", "nowhere", str(rows))
    model = place / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "internvl"}))
    assert re.search(r"model/\S+: ", complaint("evaluate", "--quiet", str(model), str(rows)))


def test_a_dataset_that_is_not_there_or_half_written(place):
    model = place / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    assert "nowhere" in complaint("evaluate", str(model), "nowhere")
    rows = place / "rows"
    write_dataset(rows, [row()])
    (rows / "manifest.json").unlink()
    assert "manifest.json" in complaint("evaluate", str(model), str(rows))


def test_a_second_command_on_the_same_output_names_the_first(place):
    from cli.line import alone

    with alone(place / "out"):
        for command in ("run", "demo"):
            assert re.search(r"process \d+ is running the line in .*out", complaint(command))


@pytest.mark.parametrize("arguments", [["promote", "7"], ["rollback"]])
def test_a_registry_that_is_not_there_is_not_made(place, arguments):
    assert "no model registry here yet" in complaint(*arguments)
    assert not (place / "out").exists()


def test_not_served(place):
    assert "not being served" in complaint("chat", "How many?")
    assert "not being served" in complaint("stop", "nobody")


def test_bugs_keep_their_traceback(monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("cli.run.choose_profile", broken)
    assert isinstance(CliRunner().invoke(app, ["run"]).exception, RuntimeError)
