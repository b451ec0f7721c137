"""The compiled requirements: portable, consistent with each other, and the same tools everywhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETS = ("line", "test", "gateway", "vllm")


def pins(name: str) -> set[str]:
    """Each pinned requirement with its marker, e.g. ``numpy==2.4.6 ; python_full_version < '3.12'``."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return {line for line in lines if line and line[0] not in " #"}


@pytest.mark.parametrize("name", SETS)
def test_every_requirement_is_pinned_and_none_names_a_registry(name):
    assert all(re.match(r"[A-Za-z0-9._-]+(\[[a-z,-]+\])?==\S+( ; .+)?$", pin) for pin in pins(name))
    assert "://" not in (ROOT / "requirements" / f"{name}.txt").read_text()


def test_the_test_environment_is_the_line_and_more():
    assert pins("line") < pins("test")


def test_the_gateway_needs_no_torch_and_no_other_version_than_the_line():
    assert not {pin for pin in pins("gateway") if re.match(r"(torch|nvidia|triton|transformers)", pin)}
    versions = {name: {pin.split(" ;")[0] for pin in pins(name)} for name in ("gateway", "line")}
    assert versions["gateway"] <= versions["line"]


def test_vllm_loads_models_with_the_same_torch_and_transformers():
    shared = {pin for pin in pins("line") if re.match(r"(torch|torchvision|transformers|tokenizers)==", pin)}
    assert len(shared) == 4
    assert shared <= pins("vllm")


def test_images_and_makefile_install_with_the_same_uv():
    found = [
        re.search(r"UV_VERSION\s*:?=\s*([0-9.]+)", (ROOT / name).read_text()).group(1)
        for name in ("Makefile", "infra/images/Dockerfile")
    ]
    assert found[0] == found[1]
