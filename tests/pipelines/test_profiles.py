"""Profiles: what they refuse, how they layer, and what overrides change."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model.data.errors import InputError
from pipelines.profile import (
    PROFILES,
    STAGES,
    built_stages,
    load_params,
    load_profile,
    parse_override,
    parse_overrides,
    planned_stages,
    profile_names,
    require_built,
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


# --- stages that do not exist yet


def test_built_stages_are_those_with_a_step_module():
    steps = {path.parent.name for path in (REPOSITORY / "components").glob("*/step.py")}
    assert set(built_stages()) == steps & set(STAGES)
    assert set(LINE) <= set(built_stages())


def test_a_line_with_a_stage_that_is_not_built_is_refused():
    profile = load_profile("qwen2_5_vl_7b_streaming")
    stage = planned_stages(profile)[0]
    line = [name for name in STAGES if name in LINE or name == stage]
    expected = rf"^override line: stage {stage} is described by this profile but not built yet; built: collect, curate"
    with pytest.raises(InputError, match=expected):
        load_profile("qwen2_5_vl_7b_streaming", {"line": line})
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
        (["collect", "stream_sft"], "stage stream_sft has no section"),
        ([], "at least 1 item"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused(line, problem):
    with pytest.raises(InputError, match=problem):
        load_profile("tiny", {"line": line})


def test_a_family_without_adapter_starts_from_a_checkpoint():
    with pytest.raises(InputError, match=r"pretrain\.init_from: family qwen2_5_vl starts from a released checkpoint"):
        load_profile("tiny", {"family": "qwen2_5_vl"})
    line, vico = [*load_profile("tiny").line], load_profile("tiny").vico.model_dump(mode="json")
    with pytest.raises(InputError, match=r"line: vico and route are for InternVL"):
        load_profile("qwen2_5_vl_7b", {"line": [step for step in line if step != "route"], "vico": vico})


# --- unknown keys, wrong values


@settings(max_examples=60, deadline=None)
@given(place=st.sampled_from(places("mappings")), key=st.from_regex(r"[a-z]{2,8}_zz", fullmatch=True))
def test_an_unknown_key_anywhere_is_an_error_that_names_it(place, key):
    assume(tuple(place[1][-1:]) != ("repeat",))  # its keys are names of families
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
    text = re.sub(r"learning_rate: \S+", "learning_rate: 0", (PROFILES / "tiny.yaml").read_text(), count=1)
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
        "extends: qwen2_5_vl_7b\nquantize: null\ncollect: {dataset: null, digits: {transcriptions: 9, questions: 9}}",
    )
    profile = load_profile(path)
    assert profile.quantize is None
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
        # The corpora of collect have one seed between them.
        [(name, path) for name, path in places("numbers") if path[-1] == "seed" and path[0] in STAGES[1:]]
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
