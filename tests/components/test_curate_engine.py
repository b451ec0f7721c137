"""The engine of ``curate``: it continues after a kill, re-runs what changed, and answers to no runner or worker."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.context import StepContext
from components.curate import findings, ledger
from components.curate.config import CurateConfig
from components.curate.daft_runner import choose_runner
from components.curate.engine import apply_recipe
from components.curate.recipe import (
    DEFAULT,
    Aspect,
    Blur,
    Decode,
    Decontaminate,
    Difficulty,
    Entropy,
    ExactDuplicates,
    Licences,
    Mixture,
    NearDuplicates,
    NearDuplicateTexts,
    RedactPii,
    Schema,
    Size,
    Statistics,
    TextImageRatio,
)
from components.curate.step import run
from model.data.artifact import file_sha256, payload_sha256
from model.data.errors import InputError
from model.data.shards import open_dataset, write_dataset
from tests.tiny import picture as noise
from tests.tiny import question_row

OPERATORS = (
    *(Size(), Aspect(largest=2.5), Entropy(), Blur(), TextImageRatio(low=4), Licences(allowed=("cc0-1.0", "MIT"))),
    *(RedactPii(), ExactDuplicates(), NearDuplicates(), NearDuplicateTexts(ngram=1), Decontaminate(), Statistics()),
    *(Mixture(temperature=2), Mixture(by="source", oversample=True, rows=20)),
)
SHARDS = 4


def mixed_rows(rng, count):
    """Rows of many kinds, good and bad; the same generator gives the same rows."""
    for index in range(count):
        kind = index % 8
        columns, height = (3, 1) if kind == 5 else (1, 1)
        image = noise(rng, columns, height)
        one = question_row(f"row-{index}", [image], str(index % 5), task=("read", "count", "sum")[index % 3])
        match kind:
            case 1:
                one["media"] = one["media"][:0]
                one["messages"][0]["content"] = f"Tell me the word number {index // 16}, please."
            case 2:
                one["media"][0]["bytes"] = one["media"][0]["bytes"][:60]
                one["media"][0]["sha256"] = None
            case 3:
                one["license"] = "proprietary"
            case 4:
                one["messages"][1]["content"] = f"write to someone{index}@example.org"
            case 6:
                one["source"] = "other"
        yield one


@pytest.fixture
def shards_of_64(monkeypatch):
    """Small row groups and shards, so that a few rows make several."""
    monkeypatch.setattr("model.data.shards.GROUP_ROWS", 32)
    monkeypatch.setattr(ledger, "SHARD_ROWS", 64)


@pytest.fixture
def corpus(tmp_path, rng, shards_of_64):
    """256 rows: 8 row groups in 2 files, 4 shards of the engine."""
    return write_dataset(tmp_path / "corpus", mixed_rows(rng, 256), shards=2)


def changed(operators, place, section):
    return (*operators[:place], section, *operators[place + 1 :])


def test_what_was_found_is_not_looked_for_again(tmp_path, corpus):
    first = apply_recipe(corpus, DEFAULT, tmp_path / "state")
    assert first.executed["0 schema"] == first.executed["1 decode"] == SHARDS
    again = apply_recipe(corpus, DEFAULT, tmp_path / "state")
    assert not again.executed
    assert again.rows.reasons == first.rows.reasons


def test_a_changed_operator_runs_again_with_those_after_it_and_no_others(tmp_path, corpus):
    recipe = (Schema(), Decode(), Size(), Entropy(), ExactDuplicates(), Statistics())
    apply_recipe(corpus, recipe, tmp_path / "state")
    outcome = apply_recipe(corpus, changed(recipe, 3, Entropy(min_bits=7.9)), tmp_path / "state")
    after = ("3 entropy", "4 exact_duplicates", "4 exact_duplicates between rows", "5 statistics")
    assert outcome.executed == dict.fromkeys(after, SHARDS)
    fresh = apply_recipe(corpus, changed(recipe, 3, Entropy(min_bits=7.9)), tmp_path / "fresh")
    assert outcome.rows.reasons == fresh.rows.reasons
    assert outcome.rows.fact("characters") == fresh.rows.fact("characters")
    assert not apply_recipe(corpus, recipe, tmp_path / "state").executed  # the first one's findings are still there


def test_changed_code_of_an_operator_runs_it_again(tmp_path, corpus, monkeypatch):
    recipe = (Schema(), Decode(), Size(), Statistics())
    apply_recipe(corpus, recipe, tmp_path / "state")
    monkeypatch.setattr(
        "components.curate.engine._code_of",
        lambda module: "edited" if module.stem == "image_operators" else _code(module),
    )
    assert set(apply_recipe(corpus, recipe, tmp_path / "state").executed) == {"2 size", "3 statistics"}


def _code(module: Path) -> str:
    from components.code_version import code_version
    from components.settings import REPOSITORY

    return code_version(module, REPOSITORY)


def test_another_dataset_takes_nothing_from_the_state(tmp_path, corpus, rng):
    other = write_dataset(tmp_path / "other", mixed_rows(rng, 256), shards=2)
    apply_recipe(corpus, DEFAULT[:2], tmp_path / "state")
    assert apply_recipe(other, DEFAULT[:2], tmp_path / "state").executed["1 decode"] == SHARDS


@pytest.mark.parametrize("damage", ["file", "marker", "no file"])
def test_a_damaged_finding_is_made_again(tmp_path, corpus, damage):
    apply_recipe(corpus, DEFAULT[:2], tmp_path / "state")
    (directory,) = (tmp_path / "state").glob("01-decode-*")
    path = sorted(directory.glob("*.parquet"))[2]
    match damage:
        case "file":
            path.write_bytes(path.read_bytes()[:-20])
        case "marker":
            path.with_name(f"{path.stem}_DONE.json").write_text("{")
        case _:
            path.unlink()
    assert apply_recipe(corpus, DEFAULT[:2], tmp_path / "state").executed == {"1 decode": 1}


def test_a_marker_counts_what_its_file_holds(tmp_path, corpus):
    outcome = apply_recipe(corpus, DEFAULT[:2], tmp_path / "state")
    notes = [json.loads(path.read_text()) for path in (tmp_path / "state").glob("01-decode-*/*_DONE.json")]
    assert sum(note["rows"] for note in notes) == 256
    assert sum(note["rejected"] for note in notes) == sum(number == 1 for number in outcome.rejected_by) == 32


KILLED = """
import os, signal, sys
from pathlib import Path
import model.data.shards
from components.context import StepContext
from components.curate import findings, ledger
from components.curate.config import CurateConfig
from components.curate.daft_runner import choose_runner
from components.curate.step import run
ledger.SHARD_ROWS = 64
seen = 0
def progress(label, done, total):
    global seen
    if "decode" in label and total == 4:
        seen += 1
        if seen == 3:  # told of none, one and two shards
            os.kill(os.getpid(), signal.SIGKILL)
here = Path(sys.argv[1])
outputs = {name: here / "out" / name for name in ("transcriptions", "questions")}
context = StepContext(state_dir=here / "state", progress=progress)
run(CurateConfig(), corpus=here / "corpus", heldout=here / "heldout", **outputs, context=context)
"""


def curate(directory, config, out, state, progress=None):
    outputs = {name: out / name for name in ("transcriptions", "questions")}
    context = StepContext(state_dir=state) if progress is None else StepContext(state_dir=state, progress=progress)
    run(config, corpus=directory / "corpus", heldout=directory / "heldout", **outputs, context=context)
    return {name: payload_sha256(path) for name, path in outputs.items()}


def test_a_killed_process_is_continued_and_gives_the_same_bytes(tmp_path, corpus, rng):
    write_dataset(tmp_path / "heldout", mixed_rows(rng, 2))
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, script, tmp_path], env=environment, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "state").rglob("rows/01-decode-*/*.parquet")}
    assert len(kept) == 2
    whole = curate(tmp_path, CurateConfig(), tmp_path / "whole", tmp_path / "other state")
    assert curate(tmp_path, CurateConfig(), tmp_path / "continued", tmp_path / "state") == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_later_run_of_the_step_takes_over_what_did_not_change(tmp_path, corpus, rng, monkeypatch):
    write_dataset(tmp_path / "heldout", mixed_rows(rng, 2))

    def told(config, name):
        labels = []
        outputs = {output: tmp_path / name / output for output in ("transcriptions", "questions")}
        context = StepContext(
            state_dir=tmp_path / f"state of {name}",
            progress=lambda label, done, total: labels.append((label, done, total)),
            cache_dir=tmp_path / "cache",
        )
        run(config, corpus=tmp_path / "corpus", heldout=tmp_path / "heldout", **outputs, context=context)
        assert not context.state_dir.exists()
        return labels

    assert ("schema, decode, exact_duplicates", 0, SHARDS) in told(CurateConfig(recipe=DEFAULT[:3]), "first")
    second = told(CurateConfig(recipe=(*DEFAULT[:2], Size(), ExactDuplicates())), "second")
    assert ("schema, decode, size, exact_duplicates", 0, SHARDS) in second
    assert not [label for label, _, _ in told(CurateConfig(recipe=DEFAULT[:3]), "third") if "between" in label]
    assert len(list((tmp_path / "cache").glob("*/*/"))) == 9  # 7 of the rows, 2 of the held-out rows
    monkeypatch.setattr(findings, "KEPT", 5)
    assert not [label for label, _, _ in told(CurateConfig(recipe=DEFAULT[:3]), "fourth") if "between" in label]
    assert len(list((tmp_path / "cache").glob("*/*/"))) == 5


def test_two_runs_at_once_do_not_share_a_cache(tmp_path):
    contexts = [StepContext(state_dir=tmp_path / name, cache_dir=tmp_path / "cache") for name in ("one", "two")]
    with findings.findings(contexts[0]) as first, findings.findings(contexts[1]) as second:
        assert (first, second) == (tmp_path / "cache", tmp_path / "two")
    with findings.findings(contexts[1]) as later:
        assert later == tmp_path / "cache"


@pytest.mark.slow
def test_workers_and_files_of_the_input_change_no_byte(tmp_path, rng, shards_of_64, monkeypatch):
    rows = list(mixed_rows(rng, 1000))
    write_dataset(tmp_path / "heldout", mixed_rows(rng, 2))
    config = CurateConfig(recipe=(*DEFAULT[:2], *OPERATORS), pretrain_tasks=("read",))
    found = []
    for workers, shards in ((1, 1), (2, 3), (4, 2)):
        monkeypatch.setenv("FOVEA_CURATE_WORKERS", str(workers))
        write_dataset(tmp_path / str(workers) / "corpus", rows, shards=shards)
        (tmp_path / str(workers) / "heldout").symlink_to(tmp_path / "heldout")
        out = tmp_path / str(workers) / "out"
        hashes = curate(tmp_path / str(workers), config, out, tmp_path / str(workers) / "state")
        found.append(hashes | {"page": file_sha256(out / "questions" / "funnel.html")})
    assert found[0] == found[1] == found[2]


@settings(max_examples=10, deadline=None)
@given(
    operators=st.lists(st.sampled_from(OPERATORS), max_size=6),
    count=st.integers(0, 70),
    shards=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_rows_in_and_copies_are_rows_out_and_rejects_for_every_recipe(tmp_path_factory, operators, count, shards, seed):
    import numpy as np

    directory = tmp_path_factory.mktemp("recipe")
    generator = np.random.default_rng(seed)
    rows = write_dataset(directory / "corpus", mixed_rows(generator, count), shards=shards)
    write_dataset(directory / "heldout", [])
    config = CurateConfig(recipe=(*DEFAULT[:2], *operators))
    curate(directory, config, directory / "out", directory / "state")
    out = [open_dataset(directory / "out" / name, verify=True) for name in ("transcriptions", "questions")]
    written = [row["id"] for dataset in out for row in dataset.rows()]
    rejects = [reject for dataset in out for reject in dataset.rejects()]
    originals = {row_id for row_id in written if "~" not in row_id}
    assert len(written) == len(set(written))
    assert originals | {reject["id"] for reject in rejects} == {row["id"] for row in rows.rows()}
    assert len(originals) + len(rejects) == len(rows)
    assert all(reject["reason"].partition(": ")[2] for reject in rejects)
    funnel = out[0].manifest["funnel"]
    assert funnel["rows_in"] + funnel["copied"] == sum(funnel["rejected"].values()) + len(written)
    assert [one["rows_in"] - one["rejected"] for one in funnel["operators"]] == [
        one["rows_out"] for one in funnel["operators"]
    ]


def test_a_difficulty_file_is_part_of_the_key(tmp_path, corpus):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "accuracies.parquet"
    recipe = (*DEFAULT[:2], Difficulty(accuracies=path))
    pq.write_table(pa.table({"id": ["row-0"], "accuracy": [0.5]}), path)
    assert apply_recipe(corpus, recipe, tmp_path / "state").rows.sound() == [0]
    pq.write_table(pa.table({"id": ["row-8"], "accuracy": [0.5]}), path)
    assert apply_recipe(corpus, recipe, tmp_path / "state").rows.sound() == [8]


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("FOVEA_CURATE_RUNNER", "spark", "FOVEA_CURATE_RUNNER: must be native or ray, not 'spark'"),
        ("FOVEA_CURATE_WORKERS", "many", "FOVEA_CURATE_WORKERS: must be a number, not 'many'"),
    ],
)
def test_a_wrong_runner_or_number_of_workers_is_named(monkeypatch, variable, value, problem):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=problem):
        choose_runner()


def test_the_runner_is_no_part_of_the_configuration():
    assert not {"runner", "workers"} & set(CurateConfig.model_fields)
