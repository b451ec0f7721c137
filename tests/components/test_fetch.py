"""fetch: the bytes that version pushed come back, whole and verified, or nothing does."""

import functools
import hashlib
import http.server
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from pathlib import Path

import pytest
from dvc.repo import Repo
from hypothesis import given, settings
from hypothesis import strategies as st

from components.context import StepContext
from components.fetch.config import FetchConfig
from components.fetch.step import run
from components.pointer import POINTER, read_pointer, write_pointer
from components.version.config import VersionConfig
from components.version.step import run as push
from model.data.errors import InputError
from model.data.shards import write_dataset
from tests.data_rows import painted_dataset, picture_row


def files(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def push_to(remote: str, dataset: Path, place: Path) -> None:
    push(VersionConfig(remote=remote), dataset=dataset, pointer=place / "pointer", context=StepContext(place / "push"))


def fetch(place: Path, config: FetchConfig | None = None, pointer: str | None = "pointer"):
    given_pointer = None if pointer is None else place / pointer
    context = StepContext(place / "state")
    return run(config or FetchConfig(), pointer=given_pointer, dataset=place / "back", context=context)


@pytest.fixture
def pushed(tmp_path) -> Path:
    """A directory with ``painted``, ``shelf`` and ``pointer``."""
    push_to(str(tmp_path / "shelf"), painted_dataset(tmp_path / "painted").path, tmp_path)
    return tmp_path


def shelf_file(place: Path, name: str) -> Path:
    """The object of a file of the dataset."""
    wanted = (place / "painted" / name).read_bytes()
    return next(path for path in (place / "shelf").rglob("*") if path.is_file() and path.read_bytes() == wanted)


@settings(max_examples=12, deadline=None)
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=4), shards=st.integers(1, 4))
def test_what_was_pushed_comes_back_byte_for_byte(texts, shards):
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        rows = [picture_row(number) | {"source": f"x{text}"} for number, text in enumerate(texts)]
        dataset = write_dataset(place / "painted", rows, shards=shards)
        push_to(str(place / "shelf"), dataset.path, place)
        assert fetch(place).numbers["rows"] == len(rows)
        assert files(place / "back") == files(dataset.path)


def test_a_revision_of_a_repository_that_dvc_tracks_is_fetched(tmp_path):
    project = tmp_path / "project"
    dataset = painted_dataset(project / "data" / "train").path
    git = ["git", "-C", str(project), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    with Repo.init(str(project), no_scm=True) as repo:
        with repo.config.edit("repo") as config:
            config["remote"]["shelf"] = {"url": "../../shelf"}
            config["core"]["remote"] = "shelf"
        repo.add([str(dataset)])
        repo.push()
    subprocess.run([*git, "add", "data/train.dvc", ".dvc/config"], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "Track"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    wanted = files(dataset)
    (project / "data" / "train.dvc").unlink()
    config = FetchConfig(repository=str(project), revision=head, path="data/train.dvc")
    assert fetch(tmp_path, config, pointer=None).numbers["rows"] == 21
    assert files(tmp_path / "back") == wanted
    for changes, problem in (
        ({"revision": "0" * 40}, "does not exist"),
        ({"path": "data/other.dvc"}, "other.dvc"),
        ({"repository": str(tmp_path / "nowhere")}, "nowhere"),
    ):
        with pytest.raises(InputError, match=problem) as caught:
            fetch(tmp_path, config.model_copy(update=changes), pointer=None)
        assert "\n" not in str(caught.value)


class _Shelf(http.server.SimpleHTTPRequestHandler):
    """A web server that takes what is posted."""

    def do_POST(self) -> None:
        path = Path(self.translate_path(self.path))
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = bytearray()
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers["Content-Length"]))
        path.write_bytes(data)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments) -> None:
        """Say nothing."""


def test_a_web_server_can_be_the_remote(tmp_path):
    (tmp_path / "shelf").mkdir()
    handler = functools.partial(_Shelf, directory=str(tmp_path / "shelf"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        dataset = painted_dataset(tmp_path / "painted").path
        push_to(f"http://127.0.0.1:{server.server_port}", dataset, tmp_path)
        fetch(tmp_path)
        server.shutdown()
    assert files(tmp_path / "back") == files(dataset)


def test_another_remote_that_has_the_bytes_will_do(pushed):
    (pushed / "shelf").rename(pushed / "moved")
    with pytest.raises(InputError, match=r"^DVC remote .*/shelf: cannot be read: no such object$"):
        fetch(pushed)
    fetch(pushed, FetchConfig(remote=str(pushed / "moved")))
    assert files(pushed / "back") == files(pushed / "painted")


@pytest.mark.parametrize("name", ["shard-00000-of-00002.parquet", "manifest.json", "rejects.parquet"])
def test_a_changed_byte_is_found_and_nothing_appears(pushed, name):
    broken = shelf_file(pushed, name)
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 1
    broken.chmod(0o644)
    broken.write_bytes(data)
    with pytest.raises(InputError, match=rf"{name}: its bytes are not what [0-9a-f]{{32}} says"):
        fetch(pushed)
    assert not (pushed / "back").exists() and not (pushed / ".back.partial").exists()


def test_a_list_of_files_that_was_changed_or_climbs_out_is_refused(pushed):
    tree = next((pushed / "shelf").rglob("*.dir"))
    tree.chmod(0o644)
    tree.write_text('[{"md5": "' + "0" * 32 + '", "relpath": "../../escaped"}]')
    with pytest.raises(InputError, match="its bytes are not what its name says"):
        fetch(pushed)
    name = hashlib.md5(tree.read_bytes()).hexdigest()
    target = pushed / "shelf" / "files" / "md5" / name[:2] / f"{name[2:]}.dir"
    target.parent.mkdir(exist_ok=True)
    shutil.move(tree, target)
    forged = read_pointer(pushed / "pointer").model_copy(update={"md5": f"{name}.dir", "nfiles": 1})
    write_pointer(forged, pushed / "pointer" / POINTER)
    with pytest.raises(InputError, match="a file in it has no proper path or hash"):
        fetch(pushed)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"payload_sha256": "0" * 64}, "not what the pointer says"),
        ({"rows": 20}, "not one whole dataset"),
        ({"size": 1}, "not one whole dataset"),
        ({"nfiles": 3}, "4 files, the pointer says 3"),
    ],
)
def test_bytes_that_contradict_the_pointer_are_refused(pushed, changes, problem):
    write_pointer(read_pointer(pushed / "pointer").model_copy(update=changes), pushed / "pointer" / POINTER)
    with pytest.raises(InputError, match=problem):
        fetch(pushed)
    assert not (pushed / "back").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "no such file; this is no output of version"),
        ("{", "pointer.json: pointer: Invalid JSON"),
        ('{"md5": "x"}', "pointer.json: md5: "),
        ('{"md5": "' + "0" * 32 + '.dir", "size": 1, "nfiles": 1, "remote": "/x", "pickle": 1}', "pickle"),
    ],
)
def test_what_is_no_pointer_is_refused_in_one_line(tmp_path, text, problem):
    (tmp_path / "pointer").mkdir()
    if text is not None:
        (tmp_path / "pointer" / POINTER).write_text(text)
    with pytest.raises(InputError, match=problem) as caught:
        fetch(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_pointer_or_a_revision_is_given_and_not_both(pushed):
    for pointer, config in ((None, FetchConfig()), ("pointer", FetchConfig(revision="0" * 40, path="a.dvc"))):
        with pytest.raises(InputError, match=r"either a pointer, or fetch\.revision"):
            fetch(pushed, config, pointer)


@pytest.mark.parametrize(
    "keys",
    [
        {"revision": "main", "path": "a.dvc"},
        {"revision": "0" * 40},
        {"path": "a.dvc"},
        {"revision": "0" * 40, "path": "../a.dvc"},
        {"revision": "0" * 40, "path": "--output=a.dvc"},
        {"revision": "0" * 40, "path": "params.yaml"},
    ],
)
def test_a_revision_that_moves_and_a_path_that_climbs_are_refused(keys):
    with pytest.raises(ValueError):
        FetchConfig(**keys)


def test_a_killed_fetch_brings_finished_files_no_second_time(pushed):
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from components.context import StepContext\n"
        "from components.data_remote import DataRemote\n"
        "from components.fetch.config import FetchConfig\n"
        "from components.fetch.step import run\n"
        "read, calls = DataRemote.read, []\n"
        "def dying(self, oid):\n"
        "    calls.append(oid)\n"
        "    for chunk in read(self, oid):\n"
        "        yield chunk[:7]\n"
        "        if len(calls) == 4:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield chunk[7:]\n"
        "DataRemote.read = dying\n"
        "p = Path(sys.argv[1])\n"
        "run(FetchConfig(), pointer=p / 'pointer', dataset=p / 'back', context=StepContext(p / 'state'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(pushed)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (pushed / "back").exists()
    finished = [path.stat().st_size for path in (pushed / "state" / "objects").iterdir() if not path.suffix]
    assert len(finished) == 2
    result = fetch(pushed)
    assert result.numbers["fetched_bytes"] == result.numbers["bytes"] - sum(finished)
    assert files(pushed / "back") == files(pushed / "painted")


def test_memory_does_not_grow_with_the_size_of_a_shard(tmp_path, rng):
    row = picture_row(1)
    row["media"][0]["bytes"] = rng.bytes(32 << 20)  # pushed and fetched, never decoded
    dataset = write_dataset(tmp_path / "painted", [row])
    config = VersionConfig(remote=str(tmp_path / "shelf"), examples=0)
    push(config, dataset=dataset.path, pointer=tmp_path / "pointer", context=StepContext(tmp_path / "push"))
    tracemalloc.start()
    fetch(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    assert files(tmp_path / "back") == files(dataset.path)
