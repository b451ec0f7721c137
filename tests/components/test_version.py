"""version: what it pushes DVC itself can pull; it pushes once, survives a kill, and says what is wrong in one line."""

import errno
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo
from kfp import compiler
from markdown_it import MarkdownIt

from components.context import StepContext
from components.data_remote import DataRemote, check_remote
from components.fetch.component import fetch as fetch_component
from components.pointer import read_pointer
from components.version.card import make_card
from components.version.component import version as version_component
from components.version.config import VersionConfig
from components.version.step import run
from model.data.artifact import payload_sha256
from model.data.errors import InputError
from model.data.shards import open_dataset, write_dataset
from tests.data_rows import painted_dataset, picture_row, text_row

SHELF = "shelf"


@pytest.fixture
def dataset(tmp_path) -> Path:
    return painted_dataset(tmp_path / "painted").path


def push(dataset: Path, tmp_path: Path, output: str = "pointer"):
    config = VersionConfig(remote=str(tmp_path / SHELF))
    return run(config, dataset=dataset, pointer=tmp_path / output, context=StepContext(tmp_path / "state"))


def objects(tmp_path: Path) -> dict[str, bytes]:
    shelf = tmp_path / SHELF
    return {path.relative_to(shelf).as_posix(): path.read_bytes() for path in shelf.rglob("*") if path.is_file()}


def contents(directory: Path) -> dict[str, bytes]:
    files = {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*")}
    return {name: data for name, data in files.items() if name != ".gitignore"}


def test_dvc_pulls_what_was_pushed(dataset, tmp_path):
    push(dataset, tmp_path)
    pointer = read_pointer(tmp_path / "pointer")
    project = tmp_path / "project"
    project.mkdir()
    with Repo.init(str(project), no_scm=True) as repo:
        with repo.config.edit("repo") as config:
            config["remote"]["shelf"] = {"url": str(tmp_path / SHELF)}
            config["core"]["remote"] = "shelf"
        out = {"md5": pointer.md5, "size": pointer.size, "nfiles": pointer.nfiles, "hash": "md5", "path": "data"}
        (project / "data.dvc").write_text(json.dumps({"outs": [out]}))
        repo.pull([str(project / "data.dvc")])
    assert contents(project / "data") == contents(dataset)


def test_a_push_leaves_the_objects_that_dvc_push_leaves(dataset, tmp_path):
    push(dataset, tmp_path)
    project = tmp_path / "project"
    shutil.copytree(dataset, project / "data")
    with Repo.init(str(project), no_scm=True) as repo:
        with repo.config.edit("repo") as config:
            config["remote"]["theirs"] = {"url": str(tmp_path / "theirs")}
            config["core"]["remote"] = "theirs"
        (stage,) = repo.add([str(project / "data")])
        repo.push()
    assert stage.outs[0].hash_info.value == read_pointer(tmp_path / "pointer").md5
    assert contents_of_files(tmp_path / SHELF) == contents_of_files(tmp_path / "theirs")


def contents_of_files(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_the_pointer_says_what_lies_where(dataset, tmp_path):
    result = push(dataset, tmp_path)
    pointer = read_pointer(tmp_path / "pointer")
    opened = open_dataset(dataset)
    assert (pointer.rows, pointer.rejects, pointer.nfiles) == (21, 2, len(opened.shards) + 2)
    assert pointer.size == sum(path.stat().st_size for path in dataset.iterdir())
    assert pointer.payload_sha256 == payload_sha256(dataset)
    assert pointer.remote == str(tmp_path / SHELF)
    card = (tmp_path / "pointer" / "card.md").read_bytes()
    assert pointer.card_sha256 == hashlib.sha256(card).hexdigest()
    assert result.values == {"md5": pointer.md5}


def test_the_same_bytes_are_pushed_once_and_give_the_same_pointer(dataset, tmp_path):
    first = push(dataset, tmp_path)
    assert first.numbers["pushed_objects"] == first.numbers["files"] + 1
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / SHELF).rglob("*")}
    again = shutil.copytree(dataset, tmp_path / "copied")
    (again / "lineage.json").write_text('{"started": 1}')
    second = push(again, tmp_path, "second")
    assert (second.numbers["pushed_objects"], second.numbers["pushed_bytes"]) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / SHELF).rglob("*")} == times
    assert contents(tmp_path / "pointer") == contents(tmp_path / "second")


def test_a_changed_dataset_pushes_only_what_changed(dataset, tmp_path):
    push(dataset, tmp_path)
    rows = [*open_dataset(dataset).rows()]
    more = write_dataset(tmp_path / "more", rows, shards=2, rejects=[])  # other rejects, so another manifest
    assert push(more.path, tmp_path, "second").numbers["pushed_objects"] == 3


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from components.context import StepContext
from components.version.config import VersionConfig
from components.version.step import run
from components import data_remote
left = [int(sys.argv[1])]
def dying(source, target):
    data = Path(source).read_bytes()
    if not left[0]:
        Path(target).write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    Path(target).write_bytes(data)
data_remote.shutil.copyfile = dying
place = Path(sys.argv[2])
run(VersionConfig(remote=str(place / "shelf")), dataset=place / "painted", pointer=place / "pointer",
    context=StepContext(place / "state"))
"""


@pytest.mark.parametrize("whole", [0, 4], ids=["first", "list"])
def test_a_killed_push_is_continued_and_points_at_nothing_before(dataset, tmp_path, whole):
    done = subprocess.run([sys.executable, "-c", KILLED, str(whole), str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "pointer").exists()
    assert not list((tmp_path / SHELF).rglob("*.dir"))
    result = push(dataset, tmp_path)
    assert result.numbers["pushed_objects"] == 5 - whole
    remote, pointer = DataRemote(str(tmp_path / SHELF)), read_pointer(tmp_path / "pointer")
    for entry in json.loads(b"".join(remote.read(pointer.md5))):
        assert b"".join(remote.read(entry["md5"])) == (dataset / entry["relpath"]).read_bytes()


def test_a_truncated_object_of_the_remote_is_pushed_again(dataset, tmp_path):
    push(dataset, tmp_path)
    before = objects(tmp_path)
    broken = next(path for path in (tmp_path / SHELF).rglob("*") if path.is_file() and not path.name.endswith(".dir"))
    broken.chmod(0o644)
    broken.write_bytes(b"short")
    assert push(dataset, tmp_path, "second").numbers["pushed_objects"] == 1
    assert objects(tmp_path) == before


def test_a_full_remote_is_one_line_and_leaves_no_part(dataset, tmp_path, monkeypatch):
    def full(source, target):
        Path(target).write_bytes(b"part")
        raise OSError(errno.ENOSPC, "No space left on device", str(source))

    monkeypatch.setattr("components.data_remote.shutil.copyfile", full)
    with pytest.raises(InputError, match=rf"^DVC remote {tmp_path}/shelf: cannot be written: it is full$") as caught:
        push(dataset, tmp_path)
    assert caught.value.__context__ is None  # or the line would name a disk of this machine
    assert objects(tmp_path) == {}
    assert not (tmp_path / "pointer").exists()


def test_a_remote_that_is_away_is_one_line(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    for remote, problem in (
        (tmp_path / "unmounted" / SHELF, "is its disk mounted"),
        (tmp_path / "file", "Not a directory"),
        ("http://127.0.0.1:9/shelf", "cannot be written: "),
    ):
        with pytest.raises(InputError, match=f"^DVC remote {remote}: .*{problem}") as caught:
            config = VersionConfig(remote=str(remote))
            run(config, dataset=dataset, pointer=tmp_path / "pointer", context=StepContext(tmp_path / "state"))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "pointer").exists()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda d: shutil.rmtree(d), "no such dataset"),
        (lambda d: (d / "manifest.json").unlink(), "its writing was not finished"),
        (lambda d: (d / "shard-00001-of-00002.parquet").write_bytes(b"PAR1"), "truncated or changed"),
        (lambda d: (d / "notes.txt").write_text("hello"), "not in its manifest"),
    ],
)
def test_what_is_no_whole_dataset_is_not_pushed(dataset, tmp_path, damage, problem):
    damage(dataset)
    with pytest.raises(InputError, match=problem):
        push(dataset, tmp_path)
    assert not (tmp_path / SHELF).exists()


@pytest.mark.parametrize(
    "remote",
    [
        "https://me:hush@host/x",
        "https://hush@host/x",
        "http://[hush",
        "s3://bucket/x?token=hush",
        "s33://bucket",
        " ",
        "a\nb",
    ],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused_without_repeating_it(remote):
    with pytest.raises(ValueError) as caught:
        VersionConfig(remote=remote)
    assert "hush" not in str(InputError(caught.value.errors()[0]["msg"]))
    with pytest.raises(InputError) as caught:
        check_remote(remote)
    assert "hush" not in str(caught.value)


def test_without_a_remote_the_step_says_which_key_is_missing(dataset, tmp_path):
    with pytest.raises(InputError, match=r"^version\.remote: "):
        run(VersionConfig(), dataset=dataset, pointer=tmp_path / "p", context=StepContext(tmp_path / "state"))


def test_options_of_a_remote_come_from_the_configuration_of_dvc(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path))
    (tmp_path / "config").write_text(
        "['remote \"web\"']\n    url = https://host/shelf\n    auth = basic\n    user = me\n    password = hush\n"
    )
    remote = DataRemote("https://host/shelf/")
    assert remote._shelf.filesystem.config["password"] == "hush"
    assert "hush" not in remote.url


# --- the card


def test_the_card_counts_what_is_there_and_is_the_same_every_time(dataset, tmp_path):
    opened = open_dataset(dataset)
    card = make_card(opened, "painted", 6)
    assert card == make_card(opened, "painted", 6)
    assert card == make_card(open_dataset(shutil.copytree(dataset, tmp_path / "elsewhere")), "painted", 6)
    for text in ("| name | 15 | 71.4% |", "| rare | 5 |", "| CC0-1.0 | 20 |", "| written | 1 |", "| 16 to 31 | 20 |"):
        assert text in card.markdown
    assert f"| payload | 21 | {opened.manifest['payload_sha256']} |" in card.markdown
    assert "| curate | duplicate | 1 |" in card.markdown
    examples = [line for line in card.markdown.splitlines() if "assistant:" in line]
    assert len(examples) == 6
    assert {line.split(" | ")[1] for line in examples} == {"name", "rare", "arithmetic"}
    assert card.html.count("<img ") == card.markdown.count("![](data:image/png") == 5


def test_the_card_shows_the_funnel_of_curation(tmp_path):
    steps = [{"op": "decode", "rows_in": 9, "rejected": 7, "rows_out": 2}]
    funnel = {"rows_in": 9, "operators": steps, "rows_out": {"questions": 2}}
    opened = write_dataset(tmp_path / "d", [text_row("a"), text_row("b")], extra_manifest={"funnel": funnel})
    assert "| decode | 9 | 7 | 2 |" in make_card(opened, "d", 0).markdown


def test_text_of_rows_cannot_become_markup_of_the_card(tmp_path):
    row = picture_row(1, text="<script>alert(1)</script> | [x](javascript:y) `z`")
    row["task"] = "<b>|bold"
    card = make_card(write_dataset(tmp_path / "d", [row]), "d", 3)
    assert "<script" not in card.html and "<b>" not in card.html
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.markdown)
    assert "<script" not in page and "<b>" not in page and "<a " not in page and "<code" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; | [x](javascript:y) `z`" in page


def test_an_empty_dataset_has_a_card_too(tmp_path):
    assert "0 rows, 0 rejects" in make_card(write_dataset(tmp_path / "d", []), "d", 3).markdown


@pytest.mark.parametrize("component", [version_component, fetch_component], ids=["version", "fetch"])
def test_the_components_compile(component, tmp_path):
    compiler.Compiler().compile(component, str(tmp_path / "component.yaml"))
    assert (tmp_path / "component.yaml").stat().st_size


def test_the_steps_import_no_network():
    script = "import sys, components.version.step, components.fetch.step; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "mlflow", "kfp"}.isdisjoint(done.stdout.split())
