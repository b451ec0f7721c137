"""What a processor can do, and the precision that follows from it."""

import pytest
from pydantic import ValidationError

from model import config, machine
from model.config import Precision, Section

CPUINFO = """processor\t: 0
model name\t: Some CPU
flags\t\t: fpu avx2 {flag}

processor\t: 1
model name\t: Some CPU
flags\t\t: fpu
"""


class Settings(Section):
    precision: Precision


@pytest.mark.parametrize(
    ("flag", "fast"), [("avx512_bf16", True), ("amx_bf16", True), ("avx512f", False), ("abf16", False)]
)
def test_instructions_are_looked_for_by_name(flag, fast, tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO.format(flag=flag))
    assert machine.processor(cpuinfo) == ("Some CPU", {"fpu", "avx2", flag})
    found = machine.processor(cpuinfo)
    monkeypatch.setattr(machine, "processor", lambda: found)
    monkeypatch.setattr(machine, "_NVIDIA", tmp_path / "none")
    assert machine.computes_bfloat16() is fast


def test_arm_says_features(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nFeatures : fp asimd bf16\n")
    assert machine.processor(tmp_path / "cpuinfo") == ("", {"fp", "asimd", "bf16"})
    assert machine.processor(tmp_path / "missing") == ("", frozenset())


@pytest.mark.parametrize(("visible", "used"), [(None, True), ("0", True), ("", False), ("-1", False)])
def test_a_gpu_counts_unless_it_is_hidden(visible, used, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "processor", lambda: ("", frozenset()))
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(machine, "_NVIDIA", tmp_path / "nvidiactl")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.computes_bfloat16() is used


@pytest.mark.parametrize(("fast", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_settled_when_it_is_read_and_names_stay(fast, precision, monkeypatch):
    monkeypatch.setattr(config, "computes_bfloat16", lambda: fast)
    settings = Settings(precision="auto")
    assert settings.precision == precision
    assert Settings.model_validate_json(settings.model_dump_json()) == settings
    assert Settings(precision="bfloat16").precision == "bfloat16"
    assert Settings(precision="float32").precision == "float32"
    with pytest.raises(ValidationError, match="'float32' or 'bfloat16'"):
        Settings(precision="automatic")
