"""When ``fovea run`` writes dvc.lock, and the one line that says why it does not."""

import shutil
from pathlib import Path

import pytest

from cli.line import why_not_commit
from components.settings import Settings
from pipelines.profile import PROFILES, load_profile

REPOSITORY = Path(__file__).parents[2]
TINY = load_profile("tiny")


@pytest.fixture
def root(tmp_path):
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


def test_the_run_that_params_describes_is_committed(root):
    assert why_not_commit(TINY, Settings.at(root / "out"), root) == ""


def test_a_run_in_another_place_or_of_another_profile_is_not(root):
    assert "dvc.yaml's in out" in why_not_commit(TINY, Settings.at(root / "elsewhere"), root)
    assert "params.yaml describes another run" in why_not_commit(load_profile("micro"), Settings.at(root / "out"), root)
    (root / "dvc.yaml").unlink()
    assert "there is no dvc.yaml" in why_not_commit(TINY, Settings.at(root / "out"), root)


def test_a_line_that_leaves_steps_out_is_not_the_one_in_dvc_yaml(root):
    written = (PROFILES / "tiny.yaml").read_text()
    full, short = "gspo, vico, route, evaluate", "gspo, evaluate"
    assert full in written
    (root / "mine.yaml").write_text(written.replace(full, short))
    (root / "params.yaml").write_text(f"profile: {root / 'mine.yaml'}\n")
    profile = load_profile(root / "mine.yaml")
    why = why_not_commit(profile, Settings.at(root / "out"), root)
    assert why == "dvc.yaml describes the full line, and profile mine leaves out vico, route"
