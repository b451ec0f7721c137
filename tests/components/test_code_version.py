"""A step's code version follows what its module can import inside the repository, and nothing else."""

from pathlib import Path

import pytest

from components.code_version import code_version, import_closure

PACKAGES = ("steps", "losses", "notes")
FILES = {
    "README.md": "about",
    "steps/__init__.py": "",
    "steps/sft.py": "import json\nimport torch\nfrom losses import next_token\nfrom .shared import finish\n",
    "steps/mpo.py": "def run():\n    from losses.preference import mpo\n",
    "steps/shared.py": "from importlib import import_module\nimport_module('losses.loaded_by_name')\n",
    "losses/__init__.py": "'the losses'",
    "losses/next_token.py": "def loss(): return 1\n",
    "losses/preference/__init__.py": "from ..next_token import loss\n",
    "losses/preference/mpo.py": "import losses.preference as package\n",
    "losses/loaded_by_name.py": "",
    "losses/nobody.py": "",
    "torch.py": "raise RuntimeError('a name of another package, beside ours')",
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def closure(repository: Path, step: str) -> set[str]:
    files = import_closure(repository / f"steps/{step}.py", repository, PACKAGES)
    return {path.relative_to(repository).as_posix() for path in files}


def versions(repository: Path) -> dict[str, str]:
    return {step: code_version(repository / f"steps/{step}.py", repository, PACKAGES) for step in ("sft", "mpo")}


def test_the_closure_holds_what_is_imported_at_any_depth_with_the_packages_around_it(repository):
    assert closure(repository, "sft") == {
        "steps/__init__.py",
        "steps/sft.py",
        "steps/shared.py",
        "losses/__init__.py",
        "losses/next_token.py",
        "losses/loaded_by_name.py",
    }


def test_imports_inside_functions_and_relative_imports_of_packages_count(repository):
    assert closure(repository, "mpo") == {
        "steps/__init__.py",
        "steps/mpo.py",
        "losses/__init__.py",
        "losses/preference/__init__.py",
        "losses/preference/mpo.py",
        "losses/next_token.py",
    }


@pytest.mark.parametrize(
    ("edited", "changed"),
    [
        ("README.md", set()),
        ("losses/nobody.py", set()),
        ("losses/preference/mpo.py", {"mpo"}),
        ("losses/loaded_by_name.py", {"sft"}),
        ("losses/next_token.py", {"sft", "mpo"}),
        ("losses/__init__.py", {"sft", "mpo"}),
    ],
)
def test_an_edit_changes_exactly_the_steps_that_import_the_file(repository, edited, changed):
    before = versions(repository)
    with (repository / edited).open("a") as stream:
        stream.write("\n# edited\n")
    after = versions(repository)
    assert {step for step in before if before[step] != after[step]} == changed


def test_a_module_that_becomes_a_package_is_another_version(repository):
    before = versions(repository)["sft"]
    (repository / "losses/next_token").mkdir()
    (repository / "losses/next_token.py").rename(repository / "losses/next_token/__init__.py")
    assert versions(repository)["sft"] != before


def test_the_same_tree_elsewhere_has_the_same_version(repository, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("clone") / "repository"
    elsewhere.symlink_to(repository)
    assert versions(elsewhere) == versions(repository)


def test_the_runner_is_in_the_closure_of_no_step():
    root = Path(__file__).parents[2]
    for module in root.glob("components/*/step.py"):
        assert root / "components/runner.py" not in import_closure(module, root)
        assert root / "components/tracking.py" not in import_closure(module, root)
