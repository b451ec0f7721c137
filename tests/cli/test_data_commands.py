"""fovea data look, diff, check: what they show of a dataset, and what they say of one that is none."""

import html.parser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from model.data.shards import open_dataset, write_dataset
from tests.data_rows import painted_dataset, picture, picture_row, text_row

CHROMIUM = shutil.which("chromium")


def fovea(*arguments: object, status: int = 0) -> str:
    """What ``fovea data`` prints."""
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result.stdout if status != 2 else result.stderr


@pytest.fixture
def dataset(tmp_path) -> Path:
    return painted_dataset(tmp_path / "painted").path


class Page(html.parser.HTMLParser):
    """Elements of a page by name, and the text of its data."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: dict[str, list[dict]] = {}
        self.data, self._inside = "", False
        self.feed(path.read_text())
        self.rows = json.loads(self.data)["rows"]
        self.rejects = json.loads(self.data)["rejects"]

    def handle_starttag(self, tag, attrs):
        self.found.setdefault(tag, []).append(dict(attrs))
        self._inside = tag == "script" and dict(attrs).get("id") == "data"

    def handle_data(self, data):
        if self._inside:
            self.data += data


def look(dataset: Path, *options: object) -> Page:
    target = dataset.parent / "look.html"
    fovea("look", dataset, "--out", target, *options)
    return Page(target)


# --- look


def test_a_page_has_every_row_picture_and_reject_of_a_small_dataset(dataset):
    page = look(dataset)
    opened = open_dataset(dataset)
    assert [row["id"] for row in page.rows] == [row["id"] for row in opened.rows()]
    assert [reject["id"] for reject in page.rejects] == ["gone-1", "gone-2"]
    pictures = [picture["uri"] for row in page.rows for picture in row["media"]]
    assert len(pictures) == 20 and all(uri.startswith("data:image/png;base64,") for uri in pictures)
    assert {(bar["data-column"], bar["data-value"]) for bar in page.found["button"] if "data-value" in bar} == {
        *(("task", task) for task in ("name", "rare", "arithmetic")),
        *(("source", source) for source in ("painted", "written")),
        *(("license", name) for name in ("CC0-1.0", "MIT")),
    }


def test_a_page_asks_for_nothing_from_a_network(dataset):
    page = look(dataset)
    addresses = [
        value
        for tag in page.found.values()
        for attrs in tag
        for name, value in attrs.items()
        if name in ("src", "href")
    ]
    assert addresses == []
    assert "default-src 'none'" in (dataset.parent / "look.html").read_text()


def test_the_same_dataset_gives_the_same_page(dataset, tmp_path):
    for name in ("one", "two"):
        fovea("look", dataset, "--out", tmp_path / f"{name}.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_a_large_dataset_is_sampled_evenly_and_no_task_is_forgotten(tmp_path):
    rows = [picture_row(number, "common") for number in range(600)]
    dataset = write_dataset(tmp_path / "d", [*rows, text_row()], shards=2).path
    shown = [row["id"] for row in look(dataset, "--rows", 7).rows]
    assert shown == [*(f"row-{number:04d}" for number in range(0, 600, 100)), "sum"]


def test_texts_and_pictures_of_a_page_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("cli.data_look._PICTURE_BYTES", 1500)
    rows = [picture_row(number, text="long " * 5000) for number in range(30)]
    page = look(write_dataset(tmp_path / "d", rows).path)
    problems = [picture.get("problem") for row in page.rows for picture in row["media"]]
    assert 0 < problems.count(None) < 20 and problems[-1] == "not shown: the page is full"
    assert max(len(message["text"]) for row in page.rows for message in row["messages"]) < 2100


def test_a_broken_picture_says_so_in_its_place(tmp_path):
    row = picture_row(1)
    row["media"][0]["bytes"] = b"no picture"
    page = look(write_dataset(tmp_path / "d", [row]).path)
    assert "not an image of a known format" in page.rows[0]["media"][0]["problem"]


EVIL = '</script><script>document.title="owned"</script><img src=x onerror="document.title=1">'


@pytest.fixture
def evil(tmp_path) -> Path:
    rows = [picture_row(number, text=EVIL) for number in range(3)]
    for row in rows:
        row["task"] = row["source"] = row["license"] = EVIL
    reject = {"id": EVIL, "step": EVIL, "reason": EVIL}
    return write_dataset(tmp_path / "evil", rows, rejects=[reject]).path


def test_text_of_rows_never_becomes_markup_of_the_page(evil):
    page = look(evil)
    assert "img" not in page.found and len(page.found["script"]) == 2
    assert page.rows[0]["messages"][0]["text"].endswith(EVIL)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_the_rows_and_filters_them(dataset, evil, tmp_path):
    def drawn(path: Path, actions: str) -> str:
        fovea("look", path, "--out", tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text()
        assert text.count("\nfilter();\n") == 1
        (tmp_path / "page.html").write_text(text.replace("\nfilter();\n", f"\nfilter();\n{actions}\n"))
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'browser'}",
            "--dump-dom",
        ]
        command = [CHROMIUM, *options, (tmp_path / "page.html").as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    everything = drawn(evil, 'by("search").value = "onerror"; filter();')
    assert "<title>evil</title>" in everything and everything.count('<article class="card row"') == 3
    some = drawn(
        dataset, 'by("search").value = "ROW-000"; filter(); document.querySelector("button[data-value=rare]").click();'
    )
    assert re.findall(r"row-\d{4}(?=</span>)", some) == ["row-0000", "row-0004", "row-0008"]
    assert "3 of 21 on this page" in some


# --- diff


def test_diff_counts_rows_by_id_and_names_what_changed(dataset, tmp_path):
    rows = list(open_dataset(dataset).rows())
    rows[3]["answers"] = ["three"]
    rows[5]["media"][0]["bytes"] = picture(99)
    rows[7]["media"][0].update(phash="0" * 16, format=None)  # told from the bytes: no change
    new = picture_row(77, "fresh")
    after = write_dataset(tmp_path / "after", [*rows[:10], *rows[12:], new], shards=1).path
    found = json.loads(fovea("diff", dataset, after, "--json"))
    assert {name: found[name] for name in ("added", "removed", "changed", "same", "moved")} == {
        **{"added": 1, "removed": 2, "changed": 2, "same": 17},
        "moved": False,
    }
    assert found["columns"] == {"answers": 1, "media": 1}
    assert found["examples"] == {
        "added": ["row-0077"],
        "removed": ["row-0010", "row-0011"],
        "changed": ["row-0003", "row-0005"],
    }
    text = fovea("diff", dataset, after)
    assert "added 1, removed 2, changed 2, same 17" in text
    assert re.search(r"fresh\W+0\W+1\W+0\.0%\W+5\.0%\W+\+5\.0", text)
    assert "removed: row-0010" in text and "curate: duplicate" in text


def test_a_dataset_does_not_differ_from_itself_in_other_shards_but_in_its_order(dataset, tmp_path):
    rows = list(open_dataset(dataset).rows())
    same = write_dataset(tmp_path / "same", rows, shards=5).path
    turned = write_dataset(tmp_path / "turned", rows[::-1]).path
    for other, moved in ((same, False), (turned, True)):
        found = json.loads(fovea("diff", dataset, other, "--json"))
        assert (found["same"], found["moved"]) == (21, moved)
        assert found["added"] == found["removed"] == found["changed"] == 0


def test_text_of_rows_cannot_steer_a_terminal(dataset, tmp_path):
    row = picture_row(1) | {"id": "\x1b[31mred\nline", "task": "\x1b]0;owned\x07[bold]x"}
    after = write_dataset(tmp_path / "after", [row]).path
    assert "\x1b" not in fovea("diff", dataset, after)


# --- check


def test_check_finds_a_sound_dataset_sound(dataset):
    assert fovea("check", dataset) == f"{dataset}: sound: 21 rows, 20 media\n"


def damaged_rows(tmp_path: Path) -> Path:
    rows = [picture_row(number) for number in range(8)]
    rows[0]["media"][0]["bytes"] = picture(50)
    rows[1]["media"][0].update(width=25)
    rows[2]["media"][0].update(bytes=b"no picture", sha256=None)
    rows[3]["answers"] = ["many"]
    rows[4]["messages"][0]["content"] = "no placeholder"
    rows[5]["id"] = "row-0007"
    rows[6]["media"][0].update(bytes=None, uri=str(tmp_path / "gone.png"))
    rows[7]["media"][0].update(bytes=None, uri="http://[")
    forged = text_row("forged") | {"scorer": {"name": "exact", "parameters": "[" * 100_000}}
    return write_dataset(tmp_path / "damaged", [*rows, forged]).path


def test_check_names_every_bad_row_on_a_line_of_its_own(tmp_path):
    lines = fovea("check", damaged_rows(tmp_path), status=1).splitlines()
    expected = [
        ("row-0000", r"media\[0\]: its sha256 is not that of its bytes"),
        ("row-0001", r"media\[0\]: width is 24, the row says 25"),
        ("row-0002", r"media\[0\]: not an image"),
        ("row-0003", r"scorer: numeric: cannot read the reference 'many'"),
        ("row-0004", "0 <image> placeholders for 1 media"),
        ("row-0006", "there is no file .*gone.png"),
        ("row-0007", r"media\[0\]: Invalid IPv6 URL"),
        ("forged", "scorer.parameters is not JSON"),
        ("row-0007", "an earlier row has this id"),
    ]
    assert len(lines) == len(expected)
    for line, (row, problem) in zip(lines, expected, strict=True):
        assert re.search(rf"shard-00000-of-00001.parquet: row '{row}': .*{problem}", line)


def test_check_looks_at_every_file_even_where_one_is_broken(dataset):
    (dataset / "shard-00001-of-00002.parquet").write_bytes(b"PAR1")
    (dataset / "rejects.parquet").unlink()
    (dataset / "stray.txt").write_text("")
    lines = fovea("check", dataset, status=1).splitlines()
    assert [re.search(r"([\w.-]+): [^:]*$", line)[1] for line in lines] == [
        "shard-00001-of-00002.parquet",
        "rejects.parquet",
        "stray.txt",
    ]


def test_check_sees_a_changed_byte_and_a_changed_manifest(dataset):
    manifest = dataset / "manifest.json"
    document = json.loads(manifest.read_text()) | {"payload_sha256": "0" * 64}
    document["funnel"] = {"rows_in": 30, "rows_out": {"a": 21}, "rejected": {"image": 2}, "copied": 0}
    manifest.write_text(json.dumps(document))
    lines = fovea("check", dataset, status=1)
    assert "payload_sha256 is not that of the files" in lines
    assert "30 rows in are not 21 out and 2 rejects" in lines
    shard = dataset / "shard-00000-of-00002.parquet"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    assert "its SHA-256 is not the manifest's" in fovea("check", dataset, status=1)


def test_check_prints_a_bounded_number_of_problems(tmp_path):
    rows = [picture_row(number) | {"answers": ["x"]} for number in range(120)]
    lines = fovea("check", write_dataset(tmp_path / "d", rows).path, status=1).splitlines()
    assert len(lines) == 101 and lines[-1] == "and 20 more problems"


# --- what is no dataset


@pytest.mark.parametrize("command", ["look", "check", "diff"])
def test_what_is_no_dataset_is_one_line_and_an_exit_status(command, dataset, tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "data.csv").write_text("a,b")
    (tmp_path / "foreign" / "manifest.json").write_text('{"name": "a web app"}')
    half = shutil.copytree(dataset, tmp_path / ".half.partial")
    (half / "manifest.json").unlink()
    for path, problem in (
        (tmp_path / "missing", "no such dataset directory"),
        (dataset / "manifest.json", "no such dataset directory"),
        (half, "its writing was not finished"),
        (tmp_path / "foreign", "not a dataset manifest"),
    ):
        arguments = [path, dataset] if command == "diff" else [path]
        said = fovea(command, *arguments, status=1 if command == "check" else 2)
        assert len(said.splitlines()) == 1 and problem in said


def test_look_will_not_write_over_a_directory(dataset, tmp_path):
    assert "is a directory" in fovea("look", dataset, "--out", tmp_path, status=2)
    (tmp_path / "file").write_text("")
    assert "x.html: File exists" in fovea("look", dataset, "--out", tmp_path / "file" / "x.html", status=2)


def test_no_command_about_data_imports_torch(dataset, tmp_path):
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from cli.main import app\n"
        "d, out = sys.argv[1:]\n"
        "for words in (['look', d, '--out', out], ['diff', d, d], ['check', d]):\n"
        "    assert CliRunner().invoke(app, ['data', *words]).exit_code == 0\n"
        "print(*sys.modules)\n"
    )
    command = [sys.executable, "-c", script, str(dataset), str(tmp_path / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "mlflow", "kfp", "dvc"}.isdisjoint(done.stdout.split())
