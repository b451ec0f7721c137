"""What was measured keeps its bytes: the five digit families, and calculations without the forms that came later."""

import hashlib
import json

import pytest

from components.collect.digits import digit_rows
from components.collect.embedded.config import EmbeddedConfig
from components.collect.embedded.rows import embedded_counts, embedded_rows
from pipelines.profile import load_profile

# Of the rows as they were before other families came. A change that is meant to move them needs new scores too.
GOLDEN = {
    "micro": (
        "3023b46548bdb358462cae01336627f575522341887ebe9d7bb48de86d7f2458",
        "137115a9821cc26436690717f9bcf6fb4398d38b54cbcb7a5274507f947f40d1",
    ),
    "tiny": (
        "36efc40df93a5fb8f594ec8f0f690fadd16774a2138d23dfa41ac5f36e606156",
        "b30a634c0918fa0e8197d0ea2983ad078d7caeb4f4a962bb651d6dacde903ae7",
    ),
}
# The first rows of tiny's families: row i does not depend on how many there are, nor on how families are mixed.
MIX = {"transcribe": 1.0, "read": 1.0, "count": 0.4, "maximum": 1.0, "locate": 1.6}
FEWER = {"micro": {}, "tiny": {"transcriptions": 300, "questions": 100, "heldout": 50, "mix": MIX}}


def digest(rows):
    sha256 = hashlib.sha256()
    for row in rows:
        media = [medium | {"bytes": hashlib.sha256(medium["bytes"]).hexdigest()} for medium in row["media"]]
        sha256.update(json.dumps(row | {"media": media}, sort_keys=True).encode() + b"\n")
    return sha256.hexdigest()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_digits_of_a_profile_are_the_bytes_they_always_were(name):
    collect = load_profile(name).collect
    rows = digit_rows(collect.digits.model_copy(update=FEWER[name]))
    assert tuple(digest(split) for split in rows) == GOLDEN[name]


def test_tiny_adds_calculations_and_small_print_to_the_digits_and_micro_nothing():
    assert load_profile("micro").collect.embedded is None
    train, heldout = embedded_counts(load_profile("tiny").collect.embedded)
    small_print = ["transcribe_fine", "read_fine", "read_sparse", "read_beside", "tallest_label"]
    assert list(train) == list(heldout) == ["sum", "difference", *small_print]


@pytest.mark.parametrize(
    ("family", "golden"),
    [
        ("arithmetic", "a189cd23e80f56bcc9b649ba548d7f4c18c4bc49093daabaffcf1e384973f5de"),
        ("text_arithmetic", "3426b31ec8e98aed272c922bebb7d58fdb17d8af510d6d709e8d0c0289f0d1b8"),
    ],
)
def test_forms_that_are_off_leave_the_rows_of_calculations_as_they_were(family, golden):
    config = EmbeddedConfig.model_validate({"heldout": 20, family: {"rows": 40, "noisy_share": 0.2}})
    assert digest(row for split in embedded_rows(config) for row in split) == golden
