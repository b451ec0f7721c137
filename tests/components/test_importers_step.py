"""The step ``collect`` on a source: what it counts, and a source or disk that fails it half way."""

import json
import shutil
import subprocess
import sys

import pytest

from components.collect.config import CollectConfig
from components.collect.step import run
from model.data.errors import InputError
from tests.source_builders import questions_csv


def collect(source, directory, context, **config):
    outputs = {name: directory / name for name in ("corpus", "heldout", "tokenizer")}
    return run(CollectConfig(source={"path": source, **config}), **outputs, context=context)


def test_a_source_that_disappears_half_way_is_one_line_and_leaves_nothing(tmp_path, context):
    source = questions_csv(tmp_path / "in", 300)

    def vanish(label, done, total):
        if label == "collect corpus" and source.exists():
            shutil.rmtree(source)

    context.progress = vanish
    with pytest.raises(InputError, match="the source disappeared while it was read"):
        collect(source, tmp_path / "out", context)
    assert not (tmp_path / "out" / "corpus").exists()
    assert not list((tmp_path / "out").glob(".*"))


def test_a_source_that_changes_half_way_is_one_line(tmp_path, context):
    source = questions_csv(tmp_path / "in", 30)

    def grow(label, done, total):
        if label == "collect corpus" and done == 0:
            with (source / "questions.csv").open("a") as stream:
                stream.write("0.png,More?,1\n")

    context.progress = grow
    with pytest.raises(InputError, match=r"changed while it was read"):
        collect(source, tmp_path / "out", context)


def test_the_step_tells_what_it_found_and_every_record_is_a_row_or_a_reject(tmp_path, context):
    source = questions_csv(tmp_path / "in", 30)
    with (source / "questions.csv").open("a") as stream:
        stream.write("lost.png,More?,1\nonly one field\n")
    result = collect(source, tmp_path / "out", context)
    numbers = result.numbers
    assert result.values == {"source": "csv (questions.csv)"}
    rows = numbers["corpus_rows"] + numbers["heldout_rows"]
    rejects = numbers["corpus_rejects"] + numbers["heldout_rejects"]
    assert (rows, rejects, numbers["source_records"]) == (30, 2, 32)
    manifest = json.loads((tmp_path / "out" / "corpus" / "manifest.json").read_text())
    assert manifest["source"]["counts"] == {"records": 32, "repeated": 0}


def test_a_full_disk_is_named_and_leaves_no_dataset(tmp_path):
    from components.failure import full_disk
    from components.settings import Settings

    assert full_disk(OSError(28, "No space left on device"), Settings.at(tmp_path))
    source, disk = questions_csv(tmp_path / "in", 400), tmp_path / "disk"
    disk.mkdir()
    isolated = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f'mount -t tmpfs -o size=20k tmpfs {disk} && exec "$@"'
    if subprocess.run([*isolated, mount, "sh", "true"], capture_output=True).returncode:
        pytest.skip("NOT CHECKED ON A FULL DISK: no private mounts on this machine")
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from components.collect.config import CollectConfig\nfrom components.collect.step import run\n"
        "from components.context import StepContext\n"
        "out = Path(sys.argv[2])\n"
        "names = ('corpus', 'heldout', 'tokenizer')\n"
        "config = CollectConfig(source={'path': sys.argv[1]})\n"
        "try:\n"
        "    run(config, **{n: out / n for n in names}, context=StepContext(state_dir=out / 'state'))\n"
        "except OSError as error:\n"
        "    print(error.errno, sorted(path.name for path in out.iterdir()))\n"
    )
    done = subprocess.run(
        [*isolated, mount, "sh", sys.executable, "-c", script, str(source), str(disk)], capture_output=True, text=True
    )
    assert done.stdout.strip() in ("28 []", "28 ['heldout']"), done.stderr[-2000:]
