"""Two processes of one torchrun, for tests: a module of this folder is run with a directory for what it finds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.process import stop_group

REPOSITORY = Path(__file__).resolve().parents[3]
_LIMIT_S = 800
limited = pytest.mark.timeout(_LIMIT_S + 100)
"""For tests that use ``run_two_ranks``."""


def run_two_ranks(module: str, out: Path) -> Path:
    """Run ``python -m tests.model.training.<module> OUT`` on two ranks to its end; returns ``out``."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", f"tests.model.training.{module}", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        # A hang is what these tests are about: it ends here, not at the limit of the suite. Without AVX-512 and beside
        # a server the cases of test_distributed.py take five minutes.
        output = process.communicate(timeout=_LIMIT_S)[0].decode()
    finally:
        stop_group(process, 15)  # torchrun is asked first: its ranks are in groups of their own
    assert process.returncode == 0, output[-4000:]
    return out


def note_patience(out: Path) -> None:
    """Leave the seconds that a collective operation of this rank waits for the others in the file ``patience``."""
    import torch.distributed

    joined = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    (out / "patience").write_text(str(joined.options._timeout.total_seconds()))
