"""Mixed preference optimisation in the training loop: its first loss, delta, the reference, resuming, bad pairs."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.data.errors import InputError
from model.flash.network import normalise
from model.objectives.config import MpoObjective
from model.training import references
from model.training.config import TrainingConfig
from model.training.loop import train
from model.training.pairs import PairReader, check_pairs
from model.training.preferences import RewardMemory, preference_stage
from model.training.references import ReferenceCache, ReferenceCopy
from tests.tiny import picture, question_row, random_model

OBJECTIVE = MpoObjective()
ln2 = math.log(2)


def pair_row(row_id, images, chosen, rejected):
    return question_row(row_id, images, chosen) | {"chosen": chosen, "rejected": rejected}


@pytest.fixture(scope="module")
def rows():
    """Text alone, one tile, several tiles, two images; answers of unequal length that begin alike or not at all."""
    rng = np.random.default_rng(11)
    grids = [[(2, 2)], [], [(1, 1)], [(2, 1), (1, 1)]]
    return [
        pair_row(
            f"r{i}", [picture(rng, *grid) for grid in grids[i % 4]], "!ab" * (1 + i % 3), "!xy7"[i % 2 :] * (i % 4 + 1)
        )
        for i in range(8)
    ]


def settings(**changes) -> TrainingConfig:
    base = {"learning_rate": 1e-3, "steps": 4, "batch_size": 4, "micro_batch_size": 2, "log_every": 1}
    base |= {"checkpoint_every": 1, "threads": 1, "precision": "float32", "loss_chunk": 7}
    return TrainingConfig(**(base | changes))


def quiet(*_):
    """No progress."""


def run(tokenizer, rows, config, directory, *, copy=False, stop_at=None, told=quiet, network=None, **language):
    """(network, history) after a stage on the tiny network; its cache holds two pairs a file."""
    given, processor = random_model(tokenizer, **language)
    network = network or given

    def progress(label, done, _total):
        if label == "mpo" and done == stop_at:
            raise KeyboardInterrupt

    reference = ReferenceCopy(network, config) if copy else ReferenceCache(directory / "cache", "m0", told, in_part=2)
    stage = preference_stage("mpo", config, OBJECTIVE, reference)
    return network, train(network, processor, rows, stage, config, directory / "state", progress).history


@pytest.fixture(scope="module")
def whole(tokenizer, rows, tmp_path_factory):
    """(network, history) of a run that nobody disturbed."""
    return run(tokenizer, rows, settings(), tmp_path_factory.mktemp("whole"))


def test_the_first_loss_is_the_closed_form_with_the_cross_entropy_of_transformers(tiny_directory, rows, whole):
    from transformers import AutoModelForImageTextToText

    from model.families.opening import load_processor

    stock = AutoModelForImageTextToText.from_pretrained(tiny_directory, dtype=torch.float32).eval()
    processor = load_processor(tiny_directory)
    reader = PairReader(rows, processor, settings())
    first = [row for batch in reader.reading(0).batches for row in batch.row_ids]
    entropies = []
    for row in rows:
        if row["id"] not in first:
            continue
        sample = processor.sample(row)
        ids, trained = torch.tensor([sample.input_ids]), torch.tensor(sample.trained)
        tiles = torch.from_numpy(sample.media["tiles"])
        with torch.no_grad():
            logits = stock(input_ids=ids, pixel_values=normalise(tiles) if len(tiles) else None).logits[0]
        entropies.append(F.cross_entropy(logits[:-1][trained[1:]], ids[0, 1:][trained[1:]]))
    assert len(entropies) == 4
    record = whole[1][0]
    assert record["preference"] == pytest.approx(ln2, rel=1e-5)
    assert record["quality"] == pytest.approx(2 * ln2, rel=1e-5)
    assert record["generation"] == pytest.approx(float(torch.stack(entropies).mean()), rel=1e-5)
    assert record["loss"] == pytest.approx(0.8 * ln2 + 0.4 * ln2 + record["generation"], rel=1e-5)
    assert (record["chosen_reward"], record["rejected_reward"]) == pytest.approx((0, 0), abs=1e-5)


def test_a_record_has_the_terms_of_its_step_and_the_delta_of_those_before(whole):
    history = whole[1]
    rewards = [(record["chosen_reward"] + record["rejected_reward"]) / 2 for record in history]
    for number, record in enumerate(history):
        terms = 0.8 * record["preference"] + 0.2 * record["quality"] + record["generation"]
        assert record["loss"] == pytest.approx(terms, rel=1e-5)
        assert record["margin"] == pytest.approx(record["chosen_reward"] - record["rejected_reward"])
        assert record["delta"] == pytest.approx(np.mean(rewards[:number]) if number else 0, abs=1e-12)
        assert 4 * record["accuracy"] in range(5)
    assert history[-1]["delta"] != 0


def test_the_chosen_become_likelier_than_the_rejected(whole):
    first, *_, last = whole[1]
    assert last["margin"] > 0.3 and last["accuracy"] == 1
    assert last["preference"] < first["preference"] - 0.1 and last["generation"] < first["generation"]


def test_the_cache_and_a_copy_give_the_same_losses(tokenizer, rows, whole, tmp_path):
    network, history = run(tokenizer, rows, settings(), tmp_path, copy=True)
    for ours, other in zip(history, whole[1], strict=True):
        if ours["step"] == 1:
            ours = ours | {"accuracy": other["accuracy"]}  # rewards that are 0 but for rounding
        assert ours == pytest.approx(other, rel=1e-5, abs=1e-5)
    for one, other in zip(network.parameters(), whole[0].parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=0)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("micro", [3, None])
def test_the_cut_into_micro_batches_changes_no_loss(tokenizer, rows, whole, tmp_path, micro):
    _, history = run(tokenizer, rows, settings(micro_batch_size=micro, steps=2), tmp_path)
    for ours, other in zip(history, whole[1], strict=False):
        assert ours["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert ours["delta"] == pytest.approx(other["delta"], abs=1e-4)
    assert history[0]["loss"] == pytest.approx(whole[1][0]["loss"], rel=1e-6)
    assert history[0]["grad_norm"] == pytest.approx(whole[1][0]["grad_norm"], rel=1e-4)


def test_a_stopped_run_continues_bit_for_bit(tokenizer, rows, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, rows, settings(), tmp_path, stop_at=1)
    network, history = run(tokenizer, rows, settings(), tmp_path)
    assert history == whole[1], "delta and the reference are part of it"
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), whole[0].parameters(), strict=True))


def test_a_run_that_lost_its_cache_continues_bit_for_bit(tokenizer, rows, whole, tmp_path):
    """The network is the reference again until its checkpoint is taken up."""
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, rows, settings(), tmp_path, stop_at=2)
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    assert run(tokenizer, rows, settings(), tmp_path)[1] == whole[1]


@pytest.fixture
def computed(monkeypatch):
    """Row ids of every forward pass of the reference."""
    seen = []
    ask = references.answer_log_probabilities
    monkeypatch.setattr(
        references,
        "answer_log_probabilities",
        lambda network, batch, chunk: seen.append(batch.row_ids) or ask(network, batch, chunk),
    )
    return seen


def test_the_reference_goes_on_after_a_kill_and_is_shared_between_runs(tokenizer, rows, whole, tmp_path, computed):
    def die(_label, done, _total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, rows, settings(), tmp_path, told=die)
    assert computed == [["r0", "r1"], ["r2", "r3"]]
    _, history = run(tokenizer, rows, settings(), tmp_path)
    assert computed[2:] == [["r4", "r5"], ["r6", "r7"]]
    assert history == whole[1]
    # Another rate is another run, with the same reference; another answer is another reference for its file.
    (tmp_path / "state").rename(tmp_path / "old")
    run(tokenizer, rows, settings(steps=1, learning_rate=1e-4), tmp_path)
    assert len(computed) == 4
    (tmp_path / "state").rename(tmp_path / "older")
    run(tokenizer, [*rows[:5], rows[5] | {"rejected": "another"}, *rows[6:]], settings(steps=1), tmp_path)
    assert computed[4:] == [["r4", "r5"]]


def test_a_damaged_file_of_the_cache_is_computed_again(tokenizer, rows, whole, tmp_path, computed):
    run(tokenizer, rows, settings(steps=1), tmp_path)
    next(iter((tmp_path / "cache").iterdir())).write_bytes(b"no tensors")
    (tmp_path / "state").rename(tmp_path / "old")
    _, history = run(tokenizer, rows, settings(), tmp_path)
    assert len(computed) == 5
    assert history == whole[1]


def test_the_tower_trains_or_is_frozen_as_the_configuration_says(tokenizer, rows, whole, tmp_path):
    before, _ = random_model(tokenizer)
    frozen, _ = run(tokenizer, rows, settings(train="without_vision", steps=1), tmp_path)

    def moved(network, part):
        pairs = zip(network.parts().parameters(part), before.parts().parameters(part), strict=True)
        return any(not torch.equal(one, other) for one, other in pairs)

    assert [moved(whole[0], part) for part in ("vision", "projector", "language")] == [True, True, True]
    assert [moved(frozen, part) for part in ("vision", "projector", "language")] == [False, True, True]


def test_dropped_paths_leave_the_reference_alone(tokenizer, rows, tmp_path):
    """It is the network without chance, so rewards of the first step are those of the dropping alone."""
    config = settings(drop_path_rate=0.5, steps=1)
    _, once = run(tokenizer, rows, config, tmp_path / "once")
    _, copied = run(tokenizer, rows, config, tmp_path / "copied", copy=True)
    assert once[0]["chosen_reward"] != 0
    assert once[0] == pytest.approx(copied[0], rel=1e-5, abs=1e-5)


def test_a_mixture_adds_its_auxiliary_loss(tokenizer, rows, tmp_path):
    from tests.tiny_internvl import QWEN_MIXTURE

    _, (record,) = run(tokenizer, rows, settings(steps=1), tmp_path, model_type="qwen3_moe", extra=QWEN_MIXTURE)
    terms = 0.8 * record["preference"] + 0.2 * record["quality"] + record["generation"]
    # The loss of equally busy experts is top_k; its coefficient is transformers' default of 0.001.
    assert 1.9e-3 < record["loss"] - terms < 6e-3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen": None}, "row r5: chosen is missing"),
        ({"rejected": None}, "row r5: rejected is missing"),
        ({"rejected": " \n"}, "row r5: rejected is empty"),
        ({"chosen": "same", "rejected": "same"}, "row r5: chosen and rejected are the same answer"),
        ({"rejected": "a<|im_end|>"}, r"row r5: rejected holds the reserved word <\|im_end\|>"),
        ({"chosen": "look: <image>"}, "row r5: chosen holds the reserved word <image>"),
        ({"rejected": "long" * 50}, r"row r5: \d+ tokens; training\.max_tokens is 200"),
        ({"media": []}, "row r5: 1 <image> placeholders for 0 images"),
    ],
)
def test_a_pair_that_cannot_be_used_is_named(tokenizer, rows, tmp_path, change, said):
    row = pair_row("r5", [picture(np.random.default_rng(0))], "yes", "no")
    with pytest.raises(InputError, match=f"^{said}$"):
        run(tokenizer, [*rows[1:2], row | change], settings(max_tokens=200), tmp_path)


def test_rows_without_pairs_are_refused_before_anything_is_computed(tokenizer, tmp_path):
    with pytest.raises(InputError, match="row r0: chosen is missing"):
        check_pairs([question_row("r0", [], "yes")])
    with pytest.raises(InputError, match="the dataset has no rows to train on"):
        run(tokenizer, [], settings(), tmp_path)


def test_a_reference_that_is_not_finite_names_its_row(tokenizer, rows, tmp_path):
    network, _ = random_model(tokenizer)
    with torch.no_grad():
        network.head.weight[5] = float("nan")
    with pytest.raises(InputError, match="row r0: the reference gives its answers nan and nan"):
        run(tokenizer, rows, settings(), tmp_path, network=network)


def test_pairs_of_a_step_are_shared_by_the_ranks(tiny_model, rows):
    _, processor = tiny_model
    config = settings(batch_size=6, micro_batch_size=2)
    whole = PairReader(rows, processor, config).reading(1)
    shares = [PairReader(rows, processor, config, ranks=2, rank=rank).reading(1) for rank in range(2)]
    ids = [[row for batch in reading.batches for row in batch.row_ids] for reading in (whole, *shares)]
    assert ids[1] == ids[0][0::2] and ids[2] == ids[0][1::2]
    assert [len(batch.row_ids) for batch in shares[0].batches] == [2, 1]
    assert sum(float(batch.weights.sum()) for share in shares for batch in share.batches) == 6
    with pytest.raises(InputError, match="batch_size 6 is not a multiple of 4 processes"):
        PairReader(rows, processor, config, ranks=4)


def test_a_memory_keeps_its_delta_to_the_last_bit():
    memory, again = RewardMemory(), RewardMemory()
    names = ("pairs", "preference", "quality", "generation", "chosen_reward", "rejected_reward", "correct")
    for values in ((2, 1, 1, 1, 0.1, 0.3, 1), (1, 1, 1, 1, -0.7, 0.1, 0)):
        memory.add({name: torch.tensor(float(value)) for name, value in zip(names, values, strict=True)})
    record = memory.step_done(lambda values: values)
    assert record["accuracy"] == pytest.approx(1 / 3) and record["chosen_reward"] == pytest.approx(-0.2)
    again.load(memory.state())
    assert again.shift == memory.shift
    assert memory.shift.mean == pytest.approx(-0.2 / 6)
