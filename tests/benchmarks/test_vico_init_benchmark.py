"""The comparison of starts says what it needs, and measures what its name says."""

from copy import deepcopy

import pytest

from model.data.errors import InputError
from model.training.config import TrainingConfig
from model.training.consistency import FrozenReference
from tests.model.training.flash_on_ranks import BASE, rows, start


def test_a_missing_demo_is_said_in_one_line(tmp_path):
    from benchmarks.vico_init import compare

    with pytest.raises(InputError, match=r"sft/model: no such model; run make demo first"):
        compare(tmp_path, quick=True)


def test_held_out_rows_are_of_every_family_and_taught_to_no_variant():
    from benchmarks.vico_init import apart

    families = [{"id": f"{task}-{number}", "task": task} for task in "abcd" for number in range(480)]
    taught, heldout = apart(families)
    assert len(heldout) == 192 and {row["task"] for row in heldout} == set("abcd")
    assert not {row["id"] for row in heldout} & {row["id"] for row in taught}


def test_the_divergence_is_of_compressed_tiles_and_rows_of_text_have_none():
    from benchmarks.vico_init import divergence

    network, processor = start()
    reference = FrozenReference(deepcopy(network), TrainingConfig(**BASE))
    text = [row for row in rows() if not row["media"]]
    assert divergence(network, processor, reference, text, 64) == 0
    assert divergence(network, processor, reference, rows()[:1], 64) > 0.01
