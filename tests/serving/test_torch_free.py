"""Processes that run no model import no torch, and the gateway nothing beyond its own requirements."""

import subprocess
import sys
from pathlib import Path

import pytest

from model.data import schema
from serving.openai_schema import RESERVED

FREE = ["serving.launch", "serving.vision", "serving.language", "components.deploy.step", "cli.serve"]
# What gateway.txt lacks and this environment has: hidden from the gateway's process.
HIDE = """
import sys
for name in ("torch", "transformers", "numba", "pyarrow", "tokenizers", "safetensors", "mlflow", "kfp", "daft"):
    sys.modules[name] = None
import serving.gateway
print("imported")
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", FREE)
def test_no_torch_and_no_transformers(module):
    assert run(f"import sys, {module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))") == "[]"


def test_the_gateway_runs_without_torch_and_the_rest_of_the_line():
    assert run(HIDE) == "imported"
    pinned = (Path(__file__).parents[2] / "requirements" / "gateway.txt").read_text()
    assert not [name for name in ("torch", "transformers", "pyarrow") if f"\n{name}==" in pinned]


def test_the_reserved_words_are_those_of_the_chat_template():
    assert {*schema.PLACEHOLDERS.values(), *schema.RESERVED} == set(RESERVED)
