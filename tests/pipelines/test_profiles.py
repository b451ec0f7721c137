"""Profiles: what they refuse, how they layer, and that the published ones say what was published."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from model.data.errors import InputError
from pipelines.profile import (
    PROFILES,
    STAGES,
    Profile,
    built_stages,
    load_params,
    load_profile,
    parse_override,
    parse_overrides,
    planned_stages,
    profile_names,
    require_built,
    require_runnable,
    section_json,
)

REPOSITORY = PROFILES.parent.parent
LINE = ("collect", "curate", "pretrain", "sft", "evaluate", "gate", "register", "deploy")
# Between them these describe every stage and every kind of section.
BROAD = ("internvl3_5_20b_a4b", "internvl3_5_8b_flash", "qwen2_5_vl_7b", "qwen2_5_vl_7b_streaming", "tiny")
OPEN_MAPPINGS = {"platform.env", "pretrain.model.language.extra"}


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
    return [(path, value)]


def mappings(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return []
    return [path, *(deeper for key, inner in value.items() for deeper in mappings(inner, (*path, key)))]


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for part in reversed(path):
        value = {part: value}
    return value


def places(kind: str) -> list[tuple[str, tuple[str, ...]]]:
    """(profile, path) of every mapping, or of every number, in the broad profiles."""
    found = []
    for name in BROAD:
        data = load_profile(name).model_dump(mode="json")
        if kind == "mappings":
            found += [(name, path) for path in mappings(data) if ".".join(path) not in OPEN_MAPPINGS]
        else:
            found += [
                (name, path)
                for path, value in leaves(data)
                if isinstance(value, int | float) and not isinstance(value, bool) and "extra" not in path
            ]
    return found


def write(directory: Path, text: str | bytes, name: str = "mine.yaml") -> Path:
    path = directory / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- what comes with Fovea


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_loads_and_says_what_it_is(name):
    profile = load_profile(name)
    assert profile.name == name
    assert profile.description and "\n" not in profile.description
    assert profile.source
    assert profile.line == LINE


def test_the_promised_profiles_exist():
    sizes = ("1b", "2b", "4b", "8b", "14b", "38b", "20b_a4b", "30b_a3b", "241b_a28b", "8b_flash")
    promised = {"micro", "tiny", "small", "qwen2_5_vl_7b", "qwen2_5_vl_7b_streaming"}
    assert set(profile_names()) == promised | {f"internvl3_5_{size}" for size in sizes}


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
        undocumented += [f"{section.__name__}.{name}" for name, f in section.model_fields.items() if not f.description]
        annotations = [f.annotation for f in section.model_fields.values()]
        while annotations:
            annotation = annotations.pop()
            if isinstance(annotation, type) and not get_args(annotation):
                todo.append(annotation)
            annotations += get_args(annotation)
    assert not undocumented


def test_checkpoints_and_data_of_the_published_profiles_lie_on_the_mounted_volume():
    for name in profile_names():
        if name in ("micro", "tiny", "small"):
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


# --- stages that do not exist yet


def test_built_stages_are_those_with_a_step_module():
    steps = {path.parent.name for path in (REPOSITORY / "components").glob("*/step.py")}
    assert set(built_stages()) == steps & set(STAGES)
    assert set(LINE) <= set(built_stages())


def test_a_line_with_a_stage_that_is_not_built_is_refused():
    profile = load_profile("internvl3_5_8b_flash")
    stage = planned_stages(profile)[0]
    line = [name for name in STAGES if name in LINE or name == stage]
    expected = rf"^override line: stage {stage} is described by this profile but not built yet; built: collect, curate"
    with pytest.raises(InputError, match=expected):
        load_profile("internvl3_5_8b_flash", {"line": line})
    with pytest.raises(InputError, match=f"stage {stage} is described .* not built yet"):
        require_built(stage)
    for built in LINE:
        require_built(built)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (["collect", "train"], "no stage is named 'train'"),
        (["curate", "collect"], "once each, in this order"),
        (["collect", "collect"], "once each, in this order"),
        (["collect", "mpo"], "stage mpo has no section"),
        ([], "at least 1 item"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused(line, problem):
    with pytest.raises(InputError, match=problem):
        load_profile("tiny", {"line": line})


def test_a_profile_of_a_family_without_adapter_loads_but_does_not_run(monkeypatch):
    profile = load_profile("qwen2_5_vl_7b")
    monkeypatch.setattr("pipelines.profile._family_exists", lambda family: False)
    with pytest.raises(InputError, match="family qwen2_5_vl is described but not built yet"):
        require_runnable(profile)
    require_runnable(load_profile("tiny"))


def test_a_family_without_adapter_starts_from_a_checkpoint():
    with pytest.raises(InputError, match=r"pretrain\.init_from: family qwen2_5_vl starts from a released checkpoint"):
        load_profile("tiny", {"family": "qwen2_5_vl"})


# --- unknown keys, wrong values


@settings(max_examples=60, deadline=None)
@given(place=st.sampled_from(places("mappings")), key=st.from_regex(r"[a-z]{2,8}_zz", fullmatch=True))
def test_an_unknown_key_anywhere_is_an_error_that_names_it(place, key):
    name, path = place
    dotted = ".".join((*path, key))
    with pytest.raises(InputError, match=f"^override {dotted}: unknown key$"):
        load_profile(name, nested((*path, key), 1))


@settings(max_examples=150, deadline=None)
@given(place=st.sampled_from(places("numbers")), value=st.sampled_from([-1, -0.5, -1e-9, float("inf"), float("nan")]))
def test_a_number_below_zero_or_not_finite_is_an_error_that_names_it(place, value):
    name, path = place
    with pytest.raises(InputError, match=rf"override {'.'.join(path)}: "):
        load_profile(name, nested(path, value))


@pytest.mark.parametrize("value", ["64", True, 6.5, [64], {"a": 1}, None])
def test_a_value_of_the_wrong_type_is_never_guessed_into_shape(value):
    with pytest.raises(InputError, match=r"^override sft\.training\.batch_size"):
        load_profile("tiny", {"sft": {"training": {"batch_size": value}}})


def test_every_problem_has_a_line_with_the_file_that_decided_the_key(tmp_path):
    path = write(
        tmp_path, "extends: tiny\ndescription: mine\nsft: {training: {learning_rate: -1, stepz: 4}}\ncurate: 3\n"
    )
    with pytest.raises(InputError) as caught:
        load_profile(path, {"pretrain": {"training": {"learning_rate": 0}}})
    assert str(caught.value).splitlines() == [
        f"{path}: curate: must be an object, not 3",
        "override pretrain.training.learning_rate: must be greater than 0, not 0",
        f"{path}: sft.training.learning_rate: must be greater than 0, not -1",
        f"{path}: sft.training.stepz: unknown key",
    ]


def test_a_broken_shipped_profile_is_named_by_its_path_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.profile.PROFILES", tmp_path / "pipelines" / "profiles")
    (tmp_path / "pipelines" / "profiles").mkdir(parents=True)
    text = (PROFILES / "tiny.yaml").read_text().replace("learning_rate: 1e-3", "learning_rate: 0", 1)
    write(tmp_path / "pipelines" / "profiles", text, "tiny.yaml")
    expected = r"^pipelines/profiles/tiny\.yaml: pretrain\.training\.learning_rate: must be greater than 0, not 0$"
    with pytest.raises(InputError, match=expected):
        load_profile("tiny")


def test_many_problems_are_cut_short(tmp_path):
    text = "extends: tiny\n" + "".join(f"key{number}: 1\n" for number in range(300))
    with pytest.raises(InputError) as caught:
        load_profile(write(tmp_path, text))
    assert len(str(caught.value).splitlines()) == 21


def test_a_missing_section_is_named(tmp_path):
    with pytest.raises(InputError, match=r"mine\.yaml: sft is missing"):
        load_profile(
            write(
                tmp_path,
                "description: d\nsource: s\nline: [collect]\ncollect: {dataset: data}\npretrain: {init_from: m}",
            )
        )


# --- YAML from strangers


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("line: [a]\nline: [b]", "line 2: key 'line' is given twice"),
        ("sft:\n  training: {steps: 1, steps: 2}", "line 2: key 'steps' is given twice"),
        ("a: &x [1]\nb: *x", "anchors and aliases are not supported"),
        ("extends: tiny\n<<: {sft: null}", "<<: unknown key"),
        ("a: !!python/object/apply:os.system [ls]", "tags are not supported"),
        ("a: !!binary aGk=", "tags are not supported"),
        ("[" * 5000, "nested deeper than 16 levels"),
        ("1: 2", "a key must be text"),
        ("null: 2", "a key must be text"),
        ("[a]: 2", "a key must be text"),
        ("a: 1\n---\nb: 2", "single document"),
        ("", "a mapping of keys to values is expected"),
        ("- a", "a mapping of keys to values is expected"),
        ("a: [1", "line 1"),
        ("a: \t- b", "line 1"),
        ("a: \x00", "unacceptable character"),
        (b"a: \xff", "not UTF-8 at byte 3"),
        (b"#" * (256 * 1024 + 1), "larger than 256 KiB"),
        ("steps: " + "9" * 5000, "limit"),
        ('description: "\\ud800"', "mine.yaml"),
        ("name: other", "name: is the file's name"),
        ("extends: [tiny]", "extends: must be the name or path"),
        ("extends: nowhere", "no profile is named 'nowhere'; profiles: internvl3_5_14b"),
        ("extends: ./gone.yaml", "gone.yaml: No such file"),
        ("extends: ./mine.yaml", "extends: goes round in a circle"),
    ],
)
def test_yaml_that_cannot_be_used_is_one_line(tmp_path, text, problem):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_profile(path)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nowhere", "no profile is named"),
        ("./nowhere.yaml", "No such file"),
        (".", "Is a directory"),
        ("", "directory"),
    ],
)
def test_a_profile_that_is_not_there_is_named(name, problem):
    with pytest.raises(InputError, match=problem):
        load_profile(name)


@given(text=st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")))
@settings(max_examples=200, deadline=None)
def test_no_text_breaks_the_reader(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(InputError):
        load_profile(path)


# --- layers and overrides


def test_a_profile_lists_only_what_differs_from_the_one_it_extends(tmp_path):
    write(tmp_path, "extends: tiny\nsft: {training: {steps: 7}}", "base.yaml")
    path = write(tmp_path, "extends: ./base.yaml\ndescription: mine\nsft: {training: {seed: 3}}")
    mine, tiny = load_profile(path), load_profile("tiny")
    assert (mine.name, mine.description, mine.source) == ("mine", "mine", tiny.source)
    assert mine.sft.training == tiny.sft.training.model_copy(update={"steps": 7, "seed": 3})
    assert mine.pretrain == tiny.pretrain


def test_a_null_takes_a_section_away(tmp_path):
    path = write(
        tmp_path,
        "extends: internvl3_5_8b\nmpo: null\ncollect: {dataset: null, digits: {transcriptions: 9, questions: 9}}",
    )
    profile = load_profile(path)
    assert profile.mpo is None
    assert profile.collect.digits.transcriptions == 9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sft.training.learning_rate=1e-4", {"sft": {"training": {"learning_rate": 1e-4}}}),
        ("family=no", {"family": "no"}),
        ("platform.env.A=010", {"platform": {"env": {"A": "010"}}}),
        ("platform.env.A='1'", {"platform": {"env": {"A": "1"}}}),
        ("sft.training.seed=", {"sft": {"training": {"seed": None}}}),
        ("curate.pretrain_tasks=[a, b]", {"curate": {"pretrain_tasks": ["a", "b"]}}),
        ("description=a=b", {"description": "a=b"}),
        ("a=-.5", {"a": -0.5}),
        ("a=1_000", {"a": 1000}),
        ("a=2024-01-01", {"a": "2024-01-01"}),
        ("a=1:30", {"a": "1:30"}),
        ("a=true", {"a": True}),
    ],
)
def test_overrides_are_read_as_yaml_1_2(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize(
    "text", ["", "sft", "=1", "sft..training=1", "a b=1", "sft.=1", "a=[1", "a=&x 1", "a" + ".a" * 5000 + "=1"]
)
def test_an_override_that_is_not_one_is_refused(text):
    with pytest.raises(InputError, match="override"):
        parse_override(text)


def test_a_later_override_wins():
    assert parse_overrides(["a.b=1", "a.c=2", "a.b=3"]) == {"a": {"b": 3, "c": 2}}


@settings(max_examples=40, deadline=None)
@given(
    place=st.sampled_from(
        [(name, path) for name, path in places("numbers") if path[-1] == "seed" and path[0] in STAGES]
    ),
    seed=st.integers(10_000, 20_000),
)
def test_an_override_changes_its_own_section_and_no_other(place, seed):
    name, path = place
    before, after = load_profile(name), load_profile(name, nested(path, seed))
    described = [stage for stage in STAGES if getattr(before, stage) is not None]
    changed = [stage for stage in described if section_json(before, stage) != section_json(after, stage)]
    assert changed == [path[0]]


def test_the_cluster_is_no_part_of_any_section():
    before = load_profile("tiny")
    after = load_profile("tiny", {"platform": {"train": {"image": "other:1", "nodes": 4}}, "description": "other"})
    assert [section_json(before, stage) for stage in LINE] == [section_json(after, stage) for stage in LINE]


@pytest.mark.parametrize("name", profile_names())
def test_a_section_survives_the_way_to_its_component(name):
    profile = load_profile(name)
    for stage in STAGES:
        section = getattr(profile, stage)
        if section is None:
            with pytest.raises(InputError, match=f"no section {stage}"):
                section_json(profile, stage)
            continue
        text = section_json(profile, stage)
        assert type(section).model_validate_json(text) == section
        assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


# --- params.yaml


def test_params_names_the_profile_and_overrides_it(tmp_path):
    assert load_params(REPOSITORY / "params.yaml") == load_profile("tiny")
    path = write(tmp_path, "profile: tiny\noverrides: {sft: {training: {steps: 9}}, gate: {}}", "params.yaml")
    assert load_params(path) == load_profile("tiny", {"sft": {"training": {"steps": 9}}})
    path = write(tmp_path, "profile: tiny\noverrides: {sft: {training: {steps: -9}}}", "params.yaml")
    with pytest.raises(InputError) as caught:
        load_params(path)
    assert str(caught.value) == f"{path}: overrides.sft.training.steps: must be greater than 0, not -9"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("overrides: {}", "profile: must be the name"),
        ("profile: [tiny]", "profile: must be the name"),
        ("profile: tiny\noverrides: [1]", "overrides: must be a mapping"),
        ("profile: tiny\noverrides: {sft: 1}", "overrides: must be a mapping"),
        ("profile: tiny\noverride: {}", "override: unknown key"),
        ("profile: tiny\noverrides: {srt: {}}", "overrides.srt: unknown key"),
    ],
)
def test_params_that_cannot_be_used_are_one_line(tmp_path, text, problem):
    with pytest.raises(InputError, match=r"params\.yaml: ") as caught:
        load_params(write(tmp_path, text, "params.yaml"))
    assert problem in str(caught.value)


def test_the_example_in_the_documentation_loads(tmp_path):
    text = (REPOSITORY / "docs" / "profiles.md").read_text()
    example = text.split("```yaml\n")[1].split("```")[0]
    profile = load_profile(write(tmp_path, example, "digits_wide.yaml"))
    assert (profile.name, profile.sft.training.steps) == ("digits_wide", 2000)
    for name in profile_names():
        assert f"`{name}`" in text or f"`{name.removeprefix('internvl3_5')}`" in text
