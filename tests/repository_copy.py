"""A copy of this repository that is a clean git clone of its own, for tests that run commands in it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]


class RepositoryCopy:
    """Commands in a copy of the working tree; the copy's code runs, in this interpreter's environment."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.record: dict[str, Any] = {}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FOVEA_", "MLFLOW_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**inherited, "PYTHONPATH": str(root), "PATH": path}

    @classmethod
    def make(cls, root: Path, profile: str) -> "RepositoryCopy":
        """Copy what git would, name ``profile`` in params.yaml, and commit all of it."""
        listing = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
        for name in filter(None, names.split("\0")):
            if (REPOSITORY / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / name, root / name)
        params = root / "params.yaml"
        params.write_text(params.read_text().replace("profile: tiny", f"profile: {profile}"))
        copy = cls(root)
        copy.git("init", "--quiet")
        copy.git("add", "--all")
        copy.git("-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message", "copy")
        return copy

    def git(self, *arguments: str) -> str:
        """Output of a git command."""
        command = ["git", "-C", str(self.root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def start(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        """A running ``fovea`` command."""
        return subprocess.Popen(
            [sys.executable, "-m", "cli.main", *arguments],
            cwd=self.root,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def fovea(self, *arguments: str) -> dict[str, Any]:
        """What a ``fovea`` command with ``--json`` printed; it must be one line and nothing else."""
        process = self.start(*arguments, "--json")
        output, errors = process.communicate()
        assert process.returncode == 0, f"{output[-2000:]}\n{errors[-2000:]}"
        assert output.count("\n") == 1, output
        return json.loads(output)

    def steps_of_runs(self) -> list[list[dict[str, Any]]]:
        """The finished steps of every pipeline run, oldest run first."""
        files = sorted((self.root / "out" / "runs").glob("*/steps.jsonl"))
        return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def processes_with(text: str) -> list[int]:
    """Ids of the processes whose command or environment mentions ``text``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                said = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if text.encode() in said:
                found.append(int(entry.name))
    return found
