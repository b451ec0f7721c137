"""The rooms keep to themselves: who imports whom, how long things are, and where heavy libraries may be named."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
ROOMS = ("model", "scoring", "planning", "components", "serving", "pipelines", "cli", "benchmarks")
HEAVY = {"torch", "transformers", "torchvision", "accelerate", "deepspeed"}
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
CONFIGS = [path for path in SOURCES if path.name == "config.py"]
COMPONENTS = [path for path in SOURCES if path.name == "component.py"]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere but for type checkers."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


def importers(package: str) -> set[str]:
    return {named(path) for path in SOURCES if package in imported(path)}


def test_the_rooms_import_each_other_as_the_contracts_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0


def test_pipelines_know_of_the_other_rooms_their_configuration_only():
    for path in (ROOT / "pipelines").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if module.partition(".")[0] in ("model", "scoring", "planning", "serving"):
                assert module.endswith(".config") or module.startswith("model.data."), f"{named(path)}: {module}"


def test_kfp_is_named_only_by_components_faces_and_pipelines():
    strangers = {name for name in importers("kfp") if not name.startswith("pipelines/")}
    assert strangers == {named(path) for path in COMPONENTS}


def test_mlflow_is_named_only_by_tracking():
    assert importers("mlflow") == {"components/tracking.py"}


def test_kserve_is_named_only_by_serving_and_deploy():
    assert all(name.startswith(("serving/", "components/deploy/")) for name in importers("kserve"))


@pytest.mark.parametrize("path", CONFIGS, ids=named)
def test_a_configuration_names_no_heavy_library(path):
    assert imported(path) & HEAVY == set()


def test_all_configurations_load_without_torch():
    modules = [named(path).removesuffix(".py").replace("/", ".") for path in CONFIGS]
    script = f"import sys, {', '.join(modules)}; sys.exit(' '.join({HEAVY} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("path", COMPONENTS, ids=named)
def test_a_component_is_a_thin_face(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert "install_kfp_package=False" in text


def test_scoring_and_planning_are_pure_python():
    for room in ("scoring", "planning"):
        for path in (ROOT / room).rglob("*.py"):
            assert imported(path) & (HEAVY | {"mlflow", "kfp", "daft"}) == set(), named(path)


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_file_is_readable_at_a_sitting(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    long = {
        node.name: length
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > 80
    }
    assert long == {}


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_everything_public_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    public = [tree] if path.name != "__init__.py" or path.read_text().strip() else []
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    public += [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    missing = [getattr(node, "name", "the module") for node in public if ast.get_docstring(node) is None]
    assert missing == []
