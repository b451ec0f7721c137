"""evaluate: a Flash model is scored as it routes, and what it kept is reported."""

import json

import numpy as np
import pytest

from cli.findings import routed_figures
from components.context import StepContext
from components.evaluate.config import EvaluateConfig
from components.evaluate.step import run, score_stored
from components.predictions import PREDICTIONS, ROUTING, SCORES, read_predictions
from components.routing_examples import read_examples
from model.data.artifact import payload_sha256
from model.data.errors import InputError
from model.data.shards import open_dataset, write_dataset
from model.families.generation import answer_rows
from model.flash.checkpoint import load_model, load_processor, save_model
from model.flash.encoding import look
from model.flash.images import row_images
from model.flash.picture import draw_tiles
from tests.tiny import picture, question_row
from tests.tiny_flash import random_flash_model

CONFIG = EvaluateConfig(batch_size=2, max_new_tokens=6, threads=1, bootstrap=100)
GRIDS = {"page": (2, 2), "photo": (1, 1)}


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory):
    """A Flash model, six held-out rows (two of text alone), and the evaluation of one on the other."""
    directory = tmp_path_factory.mktemp("flash")
    rng = np.random.default_rng(2)
    save_model(*random_flash_model(tokenizer), directory / "model")
    rows = [
        question_row(f"{task}{i}", [picture(rng, *GRIDS[task])], "1", task=task) for i in range(2) for task in GRIDS
    ]
    rows += [question_row(f"text{i}", [], "1", task="text") for i in range(2)]
    write_dataset(directory / "heldout", rows)
    evaluate(directory, directory / "evaluation")
    return directory


def evaluate(place, evaluation, **changes):
    context = StepContext(state_dir=evaluation.with_name(f"{evaluation.name}-state"), **changes)
    return run(CONFIG, model=place / "model", heldout=place / "heldout", evaluation=evaluation, context=context)


def test_the_answers_are_routed_and_the_share_of_kept_tokens_is_told(place):
    network, processor = load_model(place / "model"), load_processor(place / "model")
    rows = list(open_dataset(place / "heldout").rows())
    routed = answer_rows(network, processor, rows, batch_size=1, max_new_tokens=6)
    assert read_predictions(place / "evaluation").answers == routed
    document = json.loads((place / "evaluation" / SCORES).read_text())
    kept = {"page": [], "photo": []}
    for row in rows[:4]:
        counts = network.encode([medium["bytes"] for medium in row["media"]])[0].rows_per_tile
        kept[row["task"]] += [count / 16 for count in counts]
    shares = {family: scores["visual_tokens_kept"] for family, scores in document["families"].items()}
    assert shares == {"page": pytest.approx(np.mean(kept["page"])), "photo": np.mean(kept["photo"]), "text": None}
    assert document["visual_tokens_kept"] == pytest.approx(np.mean(kept["page"] + kept["photo"]))
    assert 0.25 < document["visual_tokens_kept"] < 1


def test_a_killed_run_counts_the_same_tiles(place, tmp_path):
    class Killed(BaseException):
        pass

    def kill(label, done, total):
        if label == "images swapped":
            raise Killed

    with pytest.raises(Killed):
        evaluate(place, tmp_path / "again", progress=kill)
    result = evaluate(place, tmp_path / "again")
    assert payload_sha256(tmp_path / "again") == payload_sha256(place / "evaluation")
    assert result.numbers["visual_tokens_kept"] > 0


def test_a_routing_of_other_rows_is_refused(place, tmp_path):
    rows = list(open_dataset(place / "heldout").rows())
    for name in (PREDICTIONS, ROUTING):
        (tmp_path / name).write_bytes((place / "evaluation" / name).read_bytes())
    score_stored(CONFIG, tmp_path, rows)
    for broken, words in (('{"compressed": [1], "tiles": [2]}', "has 1 rows; there are 6"), ("[]", "not a file of")):
        (tmp_path / ROUTING).write_text(broken)
        with pytest.raises(InputError, match=words):
            score_stored(CONFIG, tmp_path, rows)


def test_examples_are_read_back_as_what_the_network_saw(place):
    network = load_model(place / "model")
    rows = list(open_dataset(place / "heldout").rows())
    examples = dict(read_examples(place / "evaluation", rows))
    assert set(examples) == {0, 1, 2, 3}, "rows of text alone are no picture"
    assert rows[next(iter(examples))]["task"] == "page"
    for index, (seen,) in examples.items():
        (fresh,) = look(network, row_images(rows[index]))
        assert (seen.grid, list(seen.compressed), seen.tokens) == (fresh.grid, fresh.compressed, fresh.tokens)
        assert seen.probabilities == pytest.approx(fresh.probabilities, abs=1e-4)
        assert draw_tiles(seen).size == draw_tiles(fresh).size
    with pytest.raises(InputError, match="not the routing of these rows"):
        dict(read_examples(place / "evaluation", rows[:1]))
    assert dict(read_examples(place / "heldout", rows)) == {}


def test_every_image_of_a_question_is_drawn_and_counted(place, rng, tmp_path):
    seen = {"model": place / "model", "heldout": tmp_path / "heldout", "evaluation": tmp_path / "evaluation"}
    write_dataset(seen["heldout"], [question_row("two", [picture(rng, 2, 2), picture(rng)], "1")])
    run(CONFIG, **seen, context=StepContext(state_dir=tmp_path / "state"))
    compressed = json.loads((seen["evaluation"] / ROUTING).read_text())["compressed"][0]
    (figure,) = routed_figures(seen["heldout"], seen["evaluation"])
    assert figure.count("<img") == 2
    assert f"{6 * 16 - 12 * compressed} of 96 visual tokens" in figure
