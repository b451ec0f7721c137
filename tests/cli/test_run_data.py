"""``fovea run --data`` and ``fovea data export``: what a directory becomes, and one line for each mistake."""

import json

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.own_data import profile_on
from model.data.schema import image_media, scorer
from model.data.shards import open_dataset, write_dataset
from pipelines.profile import load_profile
from tests.source_builders import import_all, png, questions_csv, write_jsonl

STEPS_TO_FINE_TUNING = ("collect", "curate", "pretrain", "sft", "evaluate", "gate", "register", "deploy")


def profile_of(directory, *settings, profile=None):
    return profile_on(directory, profile, list(settings))


def test_a_folder_of_images_and_a_csv_becomes_a_profile_in_the_shape_of_tiny(tmp_path):
    profile, found = profile_of(questions_csv(tmp_path / "meters", 5))
    assert found == "csv (questions.csv)"
    assert profile.collect.source.format == "csv"
    assert profile.collect.source.path == tmp_path / "meters"
    assert profile.collect.digits is None
    assert profile.curate.pretrain_tasks == ("pretrain",)
    assert 0 < profile.collect.source.pretrain_share < 1
    tiny = load_profile("tiny")
    assert profile.line == tuple(step for step in tiny.line if step in STEPS_TO_FINE_TUNING)
    assert profile.pretrain.model == tiny.pretrain.model
    assert profile.sft.training.max_tokens <= tiny.pretrain.model.language.max_position_embeddings


def test_a_named_profile_keeps_its_line_and_a_line_can_be_asked_for(tmp_path):
    source = questions_csv(tmp_path / "meters", 5)
    assert profile_of(source, profile="tiny")[0].line == load_profile("tiny").line
    line = ("collect", "curate", "pretrain", "sft", "vico", "evaluate", "gate", "register", "deploy")
    assert profile_of(source, f"line=[{','.join(line)}]")[0].line == line


def test_what_the_user_sets_wins(tmp_path):
    source = questions_csv(tmp_path / "meters", 5)
    settings = ("collect.source.heldout_share=0.3", "collect.vocabulary=400", "collect.source.scorer.name=numeric")
    profile, _ = profile_of(source, *settings)
    assert profile.collect.source.heldout_share == 0.3
    assert profile.collect.source.scorer.name == "numeric"
    assert profile.collect.vocabulary == 400
    profile, _ = profile_of(source, profile="micro")
    assert profile.collect.vocabulary == load_profile("micro").collect.vocabulary
    profile, found = profile_of(source, "collect.source.format=captions", profile="micro")
    assert (profile.collect.source.format, found) == ("captions", "format captions")


def test_families_of_the_profiles_own_corpus_are_repeated_on_no_other(tmp_path):
    source = questions_csv(tmp_path / "meters", 5)
    assert load_profile("tiny").route.repeat
    assert profile_of(source, profile="tiny")[0].route.repeat == {}
    assert profile_of(source, "route.repeat.question=2", profile="tiny")[0].route.repeat == {"question": 2.0}


def test_datasets_of_our_own_are_taken_as_they_are(tmp_path):
    for name in ("train", "heldout"):
        (tmp_path / "mine" / name).mkdir(parents=True)
    profile, found = profile_of(tmp_path / "mine")
    assert found == "datasets train and heldout"
    assert profile.collect.dataset == tmp_path / "mine"
    assert profile.curate.pretrain_tasks == load_profile("tiny").curate.pretrain_tasks


def test_every_profile_can_be_turned_to_a_directory(tmp_path):
    from pipelines.profile import profile_names

    source = questions_csv(tmp_path / "meters", 3)
    for name in profile_names():
        assert profile_of(source, profile=name)[0].collect.source.format == "csv"


def test_both_training_stages_get_rows_of_the_directory(tmp_path):
    from components.collect.step import run as collect
    from components.context import StepContext
    from components.curate.step import run as curate

    source = questions_csv(tmp_path / "meters", 40)
    (source / "0.png").write_bytes(b"no image")
    profile, _ = profile_of(source, profile="micro")
    made = {name: tmp_path / name for name in ("corpus", "heldout", "tokenizer", "transcriptions", "questions")}
    context = StepContext(state_dir=tmp_path / "state")
    collect(profile.collect, **{name: made[name] for name in ("corpus", "heldout", "tokenizer")}, context=context)
    inputs = {name: made[name] for name in ("corpus", "heldout", "transcriptions", "questions")}
    curate(profile.curate, **inputs, context=context)
    corpus, heldout, first, second = (open_dataset(path) for path in inputs.values())
    assert len(corpus) + len(heldout) == 39
    assert [reject["id"] for reject in [*corpus.rejects(), *heldout.rejects()]] == ["questions.csv:2"]
    assert min(len(first), len(second), len(heldout)) > 0
    assert {row["task"] for row in first.rows()} == {"pretrain"}


def complaint(*arguments):
    """The one line that the command says."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("fovea: error: ")
    return line


def test_a_directory_that_cannot_be_used_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "nowhere: no such directory" in complaint("run", "--data", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no known format in it" in complaint("run", "--data", "empty")
    source = questions_csv(tmp_path / "both", 3)
    write_jsonl(source / "chat.jsonl", [{"messages": [{"role": "user", "content": "a"}]}])
    assert "say which" in complaint("run", "--data", "both")
    settings = ("--set", "collect.source.format=cvs")
    assert "collect.source" in complaint("run", "--data", "both", *settings)
    settings = ("--set", "collect.source.colour=red", "--set", "collect.source.format=csv")
    assert "colour: unknown key" in complaint("run", "--data", "both", *settings)


def test_the_command_runs_the_line_on_the_directory_and_says_what_it_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOVEA_OUT", str(tmp_path / "out"))
    questions_csv(tmp_path / "meters", 5)
    asked = []

    class Stop(Exception):
        pass

    def run_line(profile, *_rest):
        asked.append(profile)
        raise Stop

    monkeypatch.setattr("cli.line.run_line", run_line)
    result = CliRunner().invoke(app, ["run", "--data", "meters", "--profile", "micro"])
    assert isinstance(result.exception, Stop)
    assert result.stdout == "meters: csv (questions.csv)\n"
    assert asked[0].name == "micro"
    assert asked[0].collect.source.path == tmp_path / "meters"


def test_export_writes_what_imports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "id": str(index),
            "source": "s",
            "license": "CC0-1.0",
            "media": [image_media(png(index), image_format="PNG", width=6, height=6)],
            "messages": [{"role": "user", "content": "<image>\n?"}, {"role": "assistant", "content": "a"}],
            "task": "t",
            "answers": ["a"],
            "scorer": scorer("exact"),
        }
        for index in range(6)
    ]
    write_dataset(tmp_path / "rows", rows)
    for name in ("internvl", "webdataset"):
        result = CliRunner().invoke(app, ["data", "export", "rows", name, "--format", name])
        assert (result.exit_code, result.stdout) == (0, f"{name}: 6 rows in the format {name}; 0 rejects\n")
        imported = import_all(tmp_path / name)
        assert imported.importer.config.format == name
        assert imported.rows == list(open_dataset(tmp_path / "rows").rows())
    assert "internvl: exists already" in complaint("data", "export", "rows", "internvl")
    assert "nowhere: no such dataset directory" in complaint("data", "export", "nowhere", "x")
    assert json.loads((tmp_path / "internvl" / "meta.json").read_text())


@pytest.mark.parametrize("arguments", [["data", "--help"], ["data", "export", "--help"], ["run", "--help"]])
def test_help_shows_an_example(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "xample" in result.output
