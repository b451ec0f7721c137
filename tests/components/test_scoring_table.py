"""The held-out table: samples, swapped media, baselines."""

import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.scoring_table import (
    check_scorers,
    heldout_sample,
    mean_score,
    score_model_on_sample,
    score_predictions,
    swap_media,
)
from model.data.errors import InputError
from model.data.schema import image_media
from model.data.shards import open_dataset


def make_row(index, task="read", images=("a",), answer="1", scorer="exact", **parameters):
    return {
        "id": f"row-{index}",
        "source": "test",
        "license": "CC0-1.0",
        "media": [image_media(i.encode(), image_format="PNG", width=1, height=1) for i in images],
        "messages": [{"role": "user", "content": "<image>" * len(images)}, {"role": "assistant", "content": answer}],
        "task": task,
        "answers": [answer],
        "scorer": {"name": scorer, "parameters": json.dumps(parameters)},
    }


def contents(row):
    return [medium["bytes"] for medium in row["media"]]


ROWS = st.lists(
    st.tuples(st.sampled_from(["read", "count"]), st.lists(st.sampled_from("abcdef"), max_size=2)), max_size=25
).map(lambda specs: [make_row(i, task, images) for i, (task, images) in enumerate(specs)])


@given(ROWS, st.integers(0, 1000))
def test_swapped_rows_keep_their_question_and_get_different_images_of_their_own_family(rows, seed):
    for row, swapped in zip(rows, swap_media(rows, seed), strict=True):
        if swapped is None:
            continue
        assert {key: swapped[key] for key in row if key != "media"} == {key: row[key] for key in row if key != "media"}
        assert contents(swapped) != contents(row)
        assert len(swapped["media"]) == len(row["media"])
        assert contents(swapped) in [contents(r) for r in rows if r["task"] == row["task"]]


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30), st.integers(0, 1000))
def test_every_row_is_swapped_unless_one_image_holds_more_than_half(images, seed):
    rows = [make_row(i, images=[image]) for i, image in enumerate(images)]
    swapped = swap_media(rows, seed)
    if 2 * max(images.count(image) for image in images) <= len(images):
        assert None not in swapped
        assert sorted(contents(r)[0] for r in swapped) == sorted(image.encode() for image in images)


def test_swapping_is_drawn_from_the_seed():
    rows = [make_row(i, images=[str(i)]) for i in range(20)]
    assert swap_media(rows, 1) == swap_media(rows, 1)
    assert swap_media(rows, 1) != swap_media(rows, 2)


def test_text_only_rows_have_nothing_to_swap():
    assert swap_media([make_row(0, images=()), make_row(1, images=())], 0) == [None, None]


def test_a_family_s_score_stands_beside_its_constant_its_swapped_score_and_its_unreadable_answers():
    rows = [make_row(i, "count", answer=str(answer), scorer="numeric") for i, answer in enumerate([3, 3, 4, 5])]
    table = score_predictions(rows, ["3", "none", "4", "4"], ["3", None, "3", "5"], bootstrap=200)
    family = table["count"]
    assert (family.score, family.n, family.constant, family.unparsed) == (0.5, 4, 0.5, 1)
    assert family.swapped == pytest.approx(2 / 3)
    assert family.low < 0.5 < family.high


def test_families_are_in_alphabetical_order_and_count_once_each_in_the_mean():
    rows = [make_row(0, "read"), make_row(1, "count"), make_row(2, "count"), make_row(3, "count")]
    table = score_predictions(rows, ["1", "1", "x", "x"], bootstrap=10)
    assert list(table) == ["count", "read"]
    assert mean_score(table) == pytest.approx((1 + 1 / 3) / 2)


def test_an_answer_is_needed_for_every_row():
    with pytest.raises(ValueError, match="2 rows, but 1 answers"):
        score_predictions([make_row(0), make_row(1)], ["1"])


def test_a_sample_holds_the_first_rows_of_each_family(heldout, heldout_rows):
    sample = heldout_sample(open_dataset(heldout), 2)
    assert [row["id"] for row in sample] == [row["id"] for row in heldout_rows if row["id"].endswith(("0", "1"))]
    assert heldout_sample(open_dataset(heldout), 99) == heldout_rows


def test_the_embedded_corpus_accepts_its_own_answers(heldout_rows):
    check_scorers(heldout_rows)
    table = score_predictions(heldout_rows, [row["messages"][-1]["content"] for row in heldout_rows], bootstrap=10)
    assert {family.score for family in table.values()} == {1.0}


def test_an_unscorable_row_is_named():
    with pytest.raises(InputError, match="row 'row-7': unknown scorer 'bleu'"):
        check_scorers([make_row(0), make_row(7, scorer="bleu")])


def test_a_model_in_training_is_scored_in_evaluation_mode_and_goes_on_training(random_models, heldout_rows):
    from model.flash.checkpoint import load_model, load_processor

    network, processor = load_model(random_models[0]).train(), load_processor(random_models[0])
    modes = []
    network.vision_tower.register_forward_hook(lambda module, *_: modes.append(module.training))
    before = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in network.parameters())).digest()
    table = score_model_on_sample(network, processor, heldout_rows[:6], batch_size=4, max_new_tokens=2, bootstrap=10)
    assert {family: score.n for family, score in table.items()} == {"read": 2, "transcribe": 4}
    assert all(score.swapped is not None for score in table.values())
    assert modes == [False] * 4, "two batches as they are, two with images swapped"
    assert network.training
    assert before == hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in network.parameters())).digest()


def test_the_table_and_the_gate_need_no_torch():
    modules = "components.scoring_table, components.predictions, components.gate.step"
    code = f"import sys, {modules}; print({{'torch', 'transformers'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
