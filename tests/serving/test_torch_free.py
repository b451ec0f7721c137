"""Processes that run no model import no torch."""

import subprocess
import sys

import pytest

FREE = [
    "serving.gateway",
    "serving.launch",
    "serving.vision",
    "serving.language",
    "components.deploy.step",
    "cli.serve",
]


@pytest.mark.parametrize("module", FREE)
def test_no_torch_and_no_transformers(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
