"""The store: whole entries or none, one process at a time, damage noticed."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from components.lock import FileLock, Held
from components.store import COMPUTED, Store
from model.data.artifact import link_tree, payload_sha256

KEY = "0" * 64


def fill(store: Store, key: str = KEY, text: str = "weights") -> dict:
    output = store.workspace(key) / "model"
    (output / "deep").mkdir(parents=True)
    (output / "deep" / "a.bin").write_text(text)
    lineage = {"key": key, "outputs": {"model": payload_sha256(output)}}
    (output / "lineage.json").write_text(json.dumps(lineage))
    return lineage


def published(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    with store.locked(KEY, "toy"):
        store.publish(KEY, fill(store))
    return store


def test_what_was_published_is_found_with_its_lineage(tmp_path):
    store = published(tmp_path)
    entry = store.find(KEY)
    assert entry.outputs == {"model": tmp_path / "store" / KEY / "model"}
    assert entry.lineage["outputs"]["model"] == payload_sha256(entry.outputs["model"])


def test_a_key_that_nobody_computed_is_not_found(tmp_path):
    assert Store(tmp_path / "store").find(KEY) is None


def test_nothing_but_outputs_and_the_result_is_published(tmp_path):
    store = Store(tmp_path / "store")
    lineage = fill(store)
    (store.workspace(KEY) / COMPUTED).write_text("{}")
    (store.workspace(KEY) / "leftover").mkdir()
    entry = store.publish(KEY, lineage)
    assert {path.name for path in entry.directory.iterdir()} == {"model", "result.json"}


@pytest.mark.parametrize(
    "damage", ["truncated", "removed", "edited in place", "no result", "half a result", "stranger"]
)
def test_a_damaged_entry_is_moved_aside_and_said(tmp_path, capsys, damage):
    store = published(tmp_path)
    entry = tmp_path / "store" / KEY
    victim = entry / "model" / "deep" / "a.bin"
    victim.chmod(0o644)
    if damage == "truncated":
        victim.write_text("w")
    elif damage == "removed":
        victim.unlink()
    elif damage == "edited in place":
        victim.write_text("WEIGHTS")
    elif damage == "no result":
        (entry / "result.json").unlink()
    elif damage == "half a result":
        (entry / "result.json").chmod(0o644)
        (entry / "result.json").write_text('{"files": {')
    else:
        (entry / "model" / "stranger").write_text("?")
    assert store.find(KEY) is None
    assert "damaged" in capsys.readouterr().err
    assert not entry.exists()
    assert len(list((tmp_path / "store" / ".damaged").iterdir())) == 1


def test_an_entry_copied_without_its_times_is_still_whole(tmp_path):
    store = published(tmp_path)
    os.utime(tmp_path / "store" / KEY / "model" / "deep" / "a.bin", (1, 1))
    assert store.find(KEY) is not None


def test_published_files_are_read_only_through_every_link(tmp_path):
    entry = published(tmp_path).find(KEY)
    link_tree(entry.outputs["model"], tmp_path / "wanted")
    assert (tmp_path / "wanted" / "deep" / "a.bin").stat().st_mode & 0o222 == 0


def test_an_artifact_is_located_by_the_lineage_beside_it_while_its_payload_is_the_same(tmp_path):
    store = published(tmp_path)
    entry = store.find(KEY)
    wanted = tmp_path / "wanted"
    link_tree(entry.outputs["model"], wanted)
    assert store.locate(wanted, payload_sha256(wanted)) == entry.outputs["model"]
    assert store.locate(wanted, "1" * 64) is None
    assert store.locate(tmp_path, "1" * 64) is None


def _compute(root: Path, seconds: float) -> None:
    store = Store(root)
    with store.locked(KEY, "toy"):
        if store.find(KEY) is None:
            lineage = fill(store)
            with (root / "computed").open("a") as stream:
                stream.write(f"{os.getpid()}\n")
            time.sleep(seconds)
            store.publish(KEY, lineage)


def test_two_at_once_compute_once(tmp_path, capfd):
    root = tmp_path / "store"
    root.mkdir()
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_compute, args=(root, 1.0)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    pids = (root / "computed").read_text().split()
    assert len(pids) == 1
    assert f"process {pids[0]} is computing the same; waiting" in capfd.readouterr().err


def test_a_killed_holder_leaves_no_lock_and_its_workspace_is_removed(tmp_path):
    root = tmp_path / "store"
    root.mkdir()
    worker = multiprocessing.get_context("spawn").Process(target=_compute, args=(root, 60.0))
    worker.start()
    while not (root / "computed").exists():
        time.sleep(0.02)
    assert (root / ".work" / KEY / "model").exists()
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    store = Store(root)
    lock = FileLock(root / ".locks" / KEY)
    lock.take()
    lock.close()
    store.workspace("1" * 64)
    assert not (root / ".work" / KEY).exists()


def test_the_workspace_of_a_living_process_and_a_finished_computation_stay(tmp_path):
    store = Store(tmp_path / "store")
    done = store.workspace("1" * 64)
    (done / COMPUTED).write_text("{}")
    with store.locked(KEY, "toy"):
        fill(store)
        store.workspace("2" * 64)
        assert (tmp_path / "store" / ".work" / KEY / "model").exists()
    assert done.exists()


def test_a_lock_names_its_holder(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    first.take()
    with pytest.raises(Held) as held:
        second.take()
    assert held.value.pid == os.getpid()
    first.close()
    second.take()
    second.close()
