"""The step ``mpo``: from pairs and a model directory to a model directory, with what the reference said kept."""

import math

import pytest
import torch
from pydantic import ValidationError

from components.context import StepContext
from components.mpo.config import MpoConfig
from components.mpo.step import run
from model.data.errors import InputError
from model.data.shards import open_dataset, write_dataset
from model.families.opening import load_network
from model.training.config import LoraConfig, PackingConfig, TrainingConfig

TRAINING = TrainingConfig(
    learning_rate=1e-3, steps=3, batch_size=4, micro_batch_size=2, log_every=1, threads=1, precision="float32"
)
CONFIG = MpoConfig(training=TRAINING, heldout_rows=1)


@pytest.fixture(scope="module")
def pairs(digits, tmp_path_factory):
    """Questions of the tiny corpus with a wrong answer beside the right one."""
    rows = [row for row in open_dataset(digits / "corpus").rows() if row["task"] == "read"]
    for row in rows:
        row |= {"chosen": row["messages"][-1]["content"], "rejected": "none of them"}
    directory = tmp_path_factory.mktemp("pairs") / "pairs"
    write_dataset(directory, rows, shards=1, rejects=[])
    return directory


def test_a_model_is_trained_and_what_the_reference_said_is_kept_for_other_runs(pairs, heldout, random_models, tmp_path):
    given = {"rows": pairs, "heldout": heldout, "init": random_models[0]}
    cache = tmp_path / "cache"
    context = StepContext(state_dir=tmp_path / "state", cache_dir=cache)
    result = run(CONFIG, **given, model=tmp_path / "model", context=context)
    first = result.history[0]
    assert first["preference"] == pytest.approx(math.log(2), rel=1e-5)
    assert first["loss"] == pytest.approx(1.2 * math.log(2) + first["generation"], rel=1e-5)
    assert result.numbers["steps"] == 3 and result.numbers["loss"] == result.history[-1]["loss"]
    assert set(result.heldout) == {"transcribe", "read", "count", "maximum", "locate"}
    before, after = load_network(random_models[0]), load_network(tmp_path / "model")
    assert not torch.equal(before.head.weight, after.head.weight)
    files = {path: path.stat().st_mtime_ns for path in (cache / "references").iterdir()}
    other = StepContext(state_dir=tmp_path / "other", cache_dir=cache)
    run(CONFIG.model_copy(update={"heldout_rows": 2}), **given, model=tmp_path / "again", context=other)
    assert files and {path: path.stat().st_mtime_ns for path in (cache / "references").iterdir()} == files


@pytest.mark.slow
def test_adapters_learn_preferences_and_are_folded(pairs, heldout, random_models, tmp_path):
    training = TRAINING.model_copy(update={"lora": LoraConfig(rank=2)})
    config = CONFIG.model_copy(update={"training": training, "reference": "copy"})
    result = run(
        config,
        rows=pairs,
        heldout=heldout,
        init=random_models[0],
        model=tmp_path / "model",
        context=StepContext(state_dir=tmp_path / "state"),
    )
    assert result.history[0]["preference"] == pytest.approx(math.log(2), rel=1e-5)
    assert result.history[-1]["margin"] > 0
    before, after = load_network(random_models[0]), load_network(tmp_path / "model")
    names = {name for name, weight in after.state_dict().items() if not torch.equal(weight, before.state_dict()[name])}
    assert names and all(name.startswith("language_model.") for name in names)


def test_rows_that_are_no_pairs_are_named(digits, heldout, random_models, context, tmp_path):
    with pytest.raises(InputError, match=r"^row \S+: chosen is missing$"):
        run(
            CONFIG,
            rows=digits / "corpus",
            heldout=heldout,
            init=random_models[0],
            model=tmp_path / "model",
            context=context,
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"packing": PackingConfig(max_tokens=64, max_units=4)}, "packing: pairs are packed as micro_batch_size says"),
        ({"jpeg_quality": (75, 100)}, "jpeg_quality: the reference saw the image as it is"),
    ],
)
def test_settings_that_pairs_cannot_have_are_refused(change, said):
    with pytest.raises(ValidationError, match=said):
        MpoConfig(training=TRAINING.model_copy(update=change | {"micro_batch_size": None}))
