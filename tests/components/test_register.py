"""register: one version per payload, challenger always, champion when it passed or when there is none."""

import json
from pathlib import Path

import pytest

from components.context import StepContext
from components.register.config import RegisterConfig
from components.register.step import run
from components.tracking import MlflowRegistry, rollback
from model.data.artifact import payload_sha256
from model.data.errors import InputError


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


class Line:
    """Makes the inputs of register for models of one name, and registers them."""

    def __init__(self, root: Path, uri: str, name: str) -> None:
        self.root, self.uri, self.registry, self.name = root, uri, MlflowRegistry(uri), name

    def artifact(self, name: str, file: str, content: dict) -> Path:
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        (path / file).write_text(json.dumps(content))
        return path

    def register(
        self, weights: str, passed: bool, *, judged: str | None = None, again: str = "", base: str | None = None
    ) -> dict:
        model = self.artifact(f"{weights}/model", "weights", {"w": weights})
        if base is not None:
            self.artifact(f"{weights}/model/adapter", "base.json", {"sha256": base})
        (model / "lineage.json").write_text(json.dumps({"code_version": "c0de"}))
        sha256 = payload_sha256(model)
        scores = {"model_sha256": sha256, "heldout_sha256": "h" * 64, "predictions": "predictions.parquet", "mean": 0.7}
        verdict = {"passed": passed, "challenger": {"model_sha256": judged or sha256}}
        inputs = {
            "model": model,
            "evaluation": self.artifact(f"{weights}/evaluation", "scores.json", scores),
            "verdict": self.artifact(f"{weights}/verdict", "verdict.json", verdict),
        }
        output = self.root / f"{weights}{again}" / "registration"
        context = StepContext(self.root / "state", registry=self.registry, published={"model": Path("/store/k/model")})
        run(RegisterConfig(registered_model=self.name), **inputs, registration=output, context=context)
        return json.loads((output / "registration.json").read_text())

    def versions(self) -> tuple[int | None, int | None]:
        """Champion and challenger."""
        held = (self.registry.by_alias(self.name, alias) for alias in ("champion", "challenger"))
        return tuple(model.version if model else None for model in held)


@pytest.fixture
def line(tmp_path, uri, request) -> Line:
    return Line(tmp_path, uri, request.node.name)


def test_the_first_model_becomes_champion_even_if_it_failed(line):
    made = line.register("a", passed=False)
    assert made["version"] == 1
    assert sorted(made["aliases"]) == ["challenger", "champion"]
    assert made["storage_uri"] == "file:///store/k/model"
    assert line.versions() == (1, 1)


def test_a_model_that_failed_stays_challenger(line):
    line.register("a", passed=True)
    assert line.register("b", passed=False)["aliases"] == ["challenger"]
    assert line.versions() == (1, 2)


def test_a_model_that_passed_takes_over_and_can_be_rolled_back(line):
    line.register("a", passed=True)
    line.register("b", passed=True)
    assert line.versions() == (2, 2)
    assert rollback(line.name, line.uri).version == 1


def test_the_same_model_again_is_the_same_version(line):
    first = line.register("a", passed=True)
    line.register("b", passed=True)
    again = line.register("a", passed=True, again="-again")
    assert (again["version"], again["model_sha256"]) == (first["version"], first["model_sha256"])
    assert line.versions() == (1, 1)


def test_the_tags_say_what_it_was_judged_on(line):
    line.register("a", passed=True)
    tags = line.registry.by_alias(line.name, "champion").tags
    assert tags["heldout_sha256"] == "h" * 64
    assert tags["predictions_uri"].endswith("/a/evaluation/predictions.parquet")
    assert tags["evaluation_mean"] == "0.700000"
    assert tags["code_version"] == "c0de"
    assert tags["verdict"] == "passed"


def test_a_verdict_of_another_model_registers_nothing(line):
    with pytest.raises(InputError, match="another model"):
        line.register("a", passed=True, judged="f" * 64)
    assert line.versions() == (None, None)


def test_a_missing_verdict_is_named(line, tmp_path):
    line.register("a", passed=True)
    (tmp_path / "a/verdict/verdict.json").unlink()
    paths = {name: tmp_path / "a" / name for name in ("model", "evaluation", "verdict")}
    context = StepContext(tmp_path / "state", registry=line.registry)
    with pytest.raises(InputError, match=r"verdict\.json: No such file"):
        run(RegisterConfig(), **paths, registration=tmp_path / "out", context=context)
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_registered_with_its_base(line):
    base = line.register("base", passed=True)
    made = line.register("merged", passed=True, base=base["model_sha256"])
    sha256 = payload_sha256(line.root / "merged/model/adapter")
    assert made["adapter"] == {
        "path": "adapter",
        "sha256": sha256,
        "base_sha256": base["model_sha256"],
        "base": {"name": line.name, "version": 1},
    }
    tags = line.registry.by_alias(line.name, "champion").tags
    assert tags["base_version"] == f"{line.name}/1"
    assert (tags["adapter_path"], tags["adapter_sha256"]) == ("adapter", sha256)
    assert tags["base_sha256"] == base["model_sha256"]


def test_the_base_of_an_adapter_may_have_another_name_or_none(line, tmp_path, uri):
    theirs = Line(tmp_path / "theirs", uri, f"{line.name}_theirs").register("theirs", passed=True)
    made = line.register("merged", passed=True, base=theirs["model_sha256"])
    assert made["adapter"]["base"] == {"name": f"{line.name}_theirs", "version": 1}
    assert line.register("other", passed=True, base="0" * 64)["adapter"]["base"] is None
    assert "base_version" not in line.registry.by_alias(line.name, "champion").tags


def test_a_model_without_an_adapter_has_none_of_its_tags(line):
    assert line.register("a", passed=True)["adapter"] is None
    assert not {"adapter_path", "base_sha256"} & line.registry.by_alias(line.name, "champion").tags.keys()


def test_an_adapter_that_names_no_base_is_refused(line):
    line.artifact("a/model/adapter", "base.json", {})
    with pytest.raises(InputError, match=r"base\.json: sha256 of the base is missing"):
        line.register("a", passed=True)
    assert line.versions() == (None, None)
