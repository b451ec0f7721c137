"""The profiles that come with Fovea: they load, they are documented, and they say what was published."""

import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from model.data.errors import InputError
from pipelines.profile import PROFILES, STAGES, Profile, load_profile, profile_names
from pipelines.train import STEPS

REPOSITORY = PROFILES.parent.parent
CASCADE, FLASH = ("build_preferences", "mpo", "select_queries", "gspo"), ("vico", "route")


# --- what comes with Fovea


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_loads_and_says_what_it_is(name):
    profile = load_profile(name)
    assert profile.name == name
    assert profile.description and "\n" not in profile.description
    assert profile.source
    left_out = {"internvl3_5_8b_flash": ("sft", *CASCADE)}.get(name, () if profile.family == "internvl" else FLASH)
    assert profile.line == tuple(step for step in STEPS if step not in left_out)


def test_the_promised_profiles_exist():
    sizes = ("1b", "2b", "4b", "8b", "14b", "38b", "20b_a4b", "30b_a3b", "241b_a28b", "8b_flash")
    promised = {"micro", "tiny", "small", "wide", "qwen2_5_vl_7b", "qwen2_5_vl_7b_streaming"}
    assert set(profile_names()) == promised | {f"internvl3_5_{size}" for size in sizes}


def test_micro_takes_every_turn_of_consistency_training_that_tiny_takes_and_compresses():
    """What kills, containers and the two schedulers are tested with is micro."""
    micro, tiny = load_profile("micro"), load_profile("tiny")
    assert micro.vico.warmup is not None and tiny.vico.warmup is not None
    assert micro.vico.transcription_share == tiny.vico.transcription_share > 0
    assert micro.vico.objective.draw == tiny.vico.objective.draw == "mixed"
    assert micro.route.compress_above == 0.5


def test_every_stage_is_described_by_some_profile():
    profiles = [load_profile(name) for name in profile_names()]
    assert {stage for stage in STAGES if any(getattr(profile, stage) for profile in profiles)} == set(STAGES)


def test_every_key_is_documented_where_it_is_declared():
    undocumented, todo, seen = [], [Profile], set()
    while todo:
        section = todo.pop()
        if section in seen or not issubclass(section, BaseModel):
            continue
        seen.add(section)
        # A key with one possible value names its section, whose docstring says what it is.
        keys = {name: f for name, f in section.model_fields.items() if get_origin(f.annotation) is not Literal}
        keys |= {name: f for name, f in section.model_fields.items() if len(get_args(f.annotation)) > 1}
        undocumented += [f"{section.__name__}.{name}" for name, f in keys.items() if not f.description]
        annotations = [f.annotation for f in section.model_fields.values()]
        while annotations:
            annotation = annotations.pop()
            if isinstance(annotation, type) and not get_args(annotation):
                todo.append(annotation)
            annotations += get_args(annotation)
    assert not undocumented


def test_checkpoints_and_data_of_the_published_profiles_lie_on_the_mounted_volume():
    for name in profile_names():
        if name in ("micro", "tiny", "small", "wide"):
            continue
        profile = load_profile(name)
        paths = [profile.collect.dataset, profile.collect.tokenizer, profile.pretrain.init_from]
        if profile.pretrain.model:
            paths += [profile.pretrain.model.vision_checkpoint, profile.pretrain.model.language_checkpoint]
        for path in filter(None, paths):
            assert Path(path).is_relative_to(profile.platform.store.path), path


def test_reading_profiles_imports_neither_torch_nor_kfp():
    code = "import sys; from pipelines.profile import load_profile; load_profile('internvl3_5_241b_a28b'); "
    code += "print([m for m in ('torch', 'transformers', 'kfp', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# --- what was published

# Language model in 10^9 parameters with an output head, and vision tower (InternVL3.5, table 1).
TABLE_1 = {
    "1b": (0.8, 0.3),
    "2b": (2.0, 0.3),
    "4b": (4.4, 0.3),
    "8b": (8.2, 0.3),
    "14b": (14.8, 0.3),
    "38b": (32.8, 5.5),
    "20b_a4b": (20.9, 0.3),
    "30b_a3b": (30.5, 0.3),
    "241b_a28b": (235.1, 5.5),
}


def language_parameters(language, vocabulary: int) -> int:
    """Matrices only: norms and biases are below the rounding of the table."""
    width, head = language.hidden_size, language.head_dim
    attention = 2 * width * head * (language.num_attention_heads + language.num_key_value_heads)
    experts = language.extra.get("num_experts") or language.extra.get("num_local_experts") or 1
    inner = language.extra.get("moe_intermediate_size", language.intermediate_size)
    router = width * experts if experts > 1 else 0
    layer = attention + experts * 3 * width * inner + router
    return language.num_hidden_layers * layer + 2 * vocabulary * width


@pytest.mark.parametrize("size", TABLE_1)
def test_networks_have_the_published_number_of_parameters(size):
    model = load_profile(f"internvl3_5_{size}").pretrain.model
    vocabulary = 201_088 if model.language.model_type == "gpt_oss" else 151_936
    vision = model.vision
    layer = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    language, tower = TABLE_1[size]
    assert language_parameters(model.language, vocabulary) / 1e9 == pytest.approx(language, abs=0.055)
    assert vision.num_hidden_layers * layer / 1e9 == pytest.approx(tower, abs=0.055)
    assert model.rows_per_tile == 256


def test_rates_are_the_published_ones():
    for size in TABLE_1:
        profile = load_profile(f"internvl3_5_{size}")
        expected = 2e-5 if size == "241b_a28b" else 8e-5
        drop_path = {"1b": 0.0, "2b": 0.0, "4b": 0.0, "38b": 0.4, "241b_a28b": 0.4}.get(size, 0.1)
        assert (profile.sft.training.learning_rate, profile.sft.training.steps) == (expected, 8000)
        assert profile.sft.training.batch_size == 512
        assert profile.sft.training.loss_averaging == "square"
        assert profile.mpo.training.learning_rate == 2e-7
        assert profile.mpo.training.batch_size == 256
        assert {t.drop_path_rate for t in (profile.sft.training, profile.mpo.training)} == {drop_path}
    objective = load_profile("internvl3_5_8b").mpo.objective
    weights = objective.preference_weight, objective.quality_weight, objective.generation_weight
    assert (*weights, objective.beta) == (0.8, 0.2, 1.0, 0.1)


def test_only_gpt_oss_has_a_published_projector_warm_up():
    warmup = load_profile("internvl3_5_20b_a4b").pretrain.warmup
    assert (warmup.learning_rate, warmup.steps, warmup.batch_size, warmup.train) == (1e-3, 5000, 256, "projector")
    assert load_profile("internvl3_5_8b").pretrain.warmup is None


def test_online_rl_takes_whole_optimiser_steps_and_states_its_clipping():
    gspo = load_profile("internvl3_5_8b").gspo
    assert gspo.rollout.prompts * gspo.rollout.responses // gspo.training.batch_size == 16
    assert gspo.training.min_learning_rate_ratio == 1.0
    with pytest.raises(InputError, match=r"gspo\.objective\.epsilon_low: must be a valid number"):
        load_profile("internvl3_5_8b", {"gspo": {"objective": {"epsilon_low": None}}})
    with pytest.raises(InputError, match=r"batch_size must divide"):
        load_profile("internvl3_5_8b", {"gspo": {"training": {"batch_size": 500}}})


PUBLISHED = [*(f"internvl3_5_{size}" for size in TABLE_1), "qwen2_5_vl_7b"]
GPU_GB = 80


@pytest.mark.parametrize("name", PUBLISHED)
def test_preferences_are_sampled_in_half_precision_where_the_model_fits_or_by_a_server(name):
    config = load_profile(name).build_preferences
    assert (config.precision, config.threads) == ("bfloat16", 8)
    weights = 2 * sum(TABLE_1.get(name.removeprefix("internvl3_5_"), (7.6, 0.7)))
    assert weights < 0.6 * GPU_GB or config.server is not None


@pytest.mark.parametrize("size", TABLE_1)
def test_a_model_that_does_not_fit_beside_its_training_answers_through_a_server(size):
    """Whole in half precision, beside a share of the weights and their optimiser in every process."""
    profile = load_profile(f"internvl3_5_{size}")
    parameters, gspo = sum(TABLE_1[size]), profile.gspo
    ranks = gspo.training.processes * profile.platform.train.nodes
    alone = gspo.rollout.server is None
    assert alone == (2 * parameters + 16 * parameters / ranks < 0.9 * GPU_GB)
    assert alone == (profile.build_preferences.server is None)
    if not alone:
        assert gspo.rollout.importance_cap is not None
        assert gspo.rollout.server.model == profile.build_preferences.server.model == profile.name
        assert gspo.rollout.server.url != profile.build_preferences.server.url, "one has other weights"


@pytest.mark.parametrize("name", PUBLISHED)
def test_answers_are_sampled_together_even_where_all_of_them_are_as_long_as_they_may_be(name):
    rollout = load_profile(name).gspo.rollout
    longest = rollout.max_prompt_tokens + rollout.max_new_tokens
    assert rollout.server is not None or rollout.cache_tokens >= 4 * longest


@pytest.mark.parametrize("name", PUBLISHED)
def test_answers_of_a_group_share_their_forward_passes_as_far_as_the_longest_fit(name):
    """What the layers keep of every token with activation checkpointing, and no pass over the end of a group."""
    profile = load_profile(name)
    gspo, answers = profile.gspo, profile.gspo.training.micro_batch_size
    assert gspo.rollout.responses % answers == 0
    language = getattr(profile.pretrain.model, "language", None)
    width, layers = (language.hidden_size, language.num_hidden_layers) if language else (3584, 28)
    longest = gspo.rollout.max_prompt_tokens + answers * gspo.rollout.max_new_tokens
    assert 2 * width * layers * longest < 0.45 * GPU_GB * 1e9
    assert answers > 1 or width * layers > 5000 * 60


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_that_importers_give_no_checkable_answer_get_their_pairs_from_dropout(name):
    from components.collect.importers import captions, internvl, llava, sharegpt

    config = load_profile(name).build_preferences
    if config is None:
        pytest.skip("this profile builds no preferences")
    assert {module.DEFAULT_TASK for module in (captions, internvl, llava, sharegpt)} <= set(config.open_tasks)
    assert config.dropout_start_ratio == 0.5


# --- what is written about them


def test_the_example_in_the_documentation_loads(tmp_path):
    text = (REPOSITORY / "docs" / "profiles.md").read_text()
    example = text.split("```yaml\n")[1].split("```")[0]
    path = tmp_path / "digits_wide.yaml"
    path.write_text(example)
    profile = load_profile(path)
    assert (profile.name, profile.sft.training.steps) == ("digits_wide", 2000)
    for name in profile_names():
        assert f"`{name}`" in text or f"`{name.removeprefix('internvl3_5')}`" in text
