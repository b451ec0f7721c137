"""The README's commands, as written, on the profile ``micro``.

A fenced block whose info string is ``sh test`` is run; the blocks of the file run one after the other, in one shell
that stops at the first error, in a copy of the repository whose params.yaml names ``micro``.
"""

import re
import subprocess
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
_BLOCK = re.compile(r"^```sh(?P<marks>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


def marked_blocks(text: str) -> list[str]:
    """The commands of every block that is marked for testing, in order."""
    return [match["body"] for match in _BLOCK.finditer(text) if "test" in match["marks"].split()]


def test_only_marked_blocks_are_run():
    text = "```sh test\nfovea run\n```\n\n```sh\nmake demo\n```\n\n```\nart\n```\n\n```sh test\nls\npwd\n```\n"
    assert marked_blocks(text) == ["fovea run\n", "ls\npwd\n"]


def test_every_fovea_command_of_the_readme_is_run():
    text = README.read_text()
    said = set(re.findall(r"^(?:fovea|dvc) .*$", text, re.MULTILINE))
    run = {line for block in marked_blocks(text) for line in block.splitlines()}
    assert said <= run


@pytest.mark.slow
@pytest.mark.line
@pytest.mark.timeout(1800)
@pytest.mark.xdist_group("line")
def test_the_readmes_commands_run_as_written(micro_line):
    script = "".join(marked_blocks(README.read_text()))
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=micro_line.root,
        env=micro_line.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "is the champion" in done.stdout
    status = micro_line.git("status", "--porcelain")
    assert status == ""
