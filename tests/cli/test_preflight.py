"""The look at the machine before anything is installed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from cli import preflight
from model import machine

SOURCE = Path(preflight.__file__)


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 9)])
def test_supported_pythons_pass(version):
    assert preflight.check_python(version).problem == ""


@pytest.mark.parametrize("version", [(3, 9, 2), (3, 10, 14), (3, 13, 0), (4, 0, 0)])
def test_another_python_is_refused_by_its_number(version):
    problem = preflight.check_python(version).problem
    assert "3.11 or 3.12" in problem
    assert "{}.{}.{}".format(*version) in problem


@pytest.mark.parametrize(("source", "others"), [(SOURCE, {"model.machine"}), (Path(machine.__file__), set())])
def test_the_script_parses_on_old_pythons_and_needs_the_standard_library_only(source, others):
    tree = ast.parse(source.read_text(), feature_version=(3, 7))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported - others} <= sys.stdlib_module_names


def test_the_minutes_are_those_of_this_processor():
    times = {
        (cores, bfloat16): preflight.check_work(True, cores, bfloat16)[1].found
        for cores in (1, 4)
        for bfloat16 in (True, False)
    }
    assert times[4, True] == "about 18 minutes on 4 cores the first time"
    assert "about 60 minutes" in times[4, False] and "without bfloat16 instructions" in times[4, False]
    assert "about 36" in times[1, True] and "about 120" in times[1, False]


def test_too_little_disk_or_memory_is_a_problem():
    assert preflight.check_disk(20, installed=False).problem == ""
    assert preflight.check_disk(3, installed=True).problem == ""
    assert "3.0 are free" in preflight.check_disk(3, installed=False).problem
    assert preflight.check_memory(8).problem == ""
    assert "1.5 are available" in preflight.check_memory(1.5).problem
    assert preflight.check_memory(None).problem == ""


def test_memory_is_read_in_gib(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 33554432 kB\nMemAvailable:    8388608 kB\n")
    assert preflight.available_memory_gib(meminfo) == 8
    assert preflight.available_memory_gib(tmp_path / "nothing") is None


def test_another_platform_is_refused():
    assert preflight.check_platform("Linux", "x86_64").problem == ""
    assert "Darwin arm64" in preflight.check_platform("Darwin", "arm64").problem


def test_a_gpu_is_used_unless_it_is_hidden():
    assert "none is needed" in preflight.check_gpu(None, None).found
    assert "H200, used" in preflight.check_gpu("H200", None).found
    assert "H200, not used" in preflight.check_gpu("H200", "").found


def test_the_script_prints_every_check():
    done = subprocess.run([sys.executable, SOURCE], capture_output=True, text=True, check=False)
    for name in ("Python", "disk", "memory", "download", "time", "GPU"):
        assert name in done.stdout
