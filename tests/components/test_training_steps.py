"""The training steps as processes: kill -9 and SIGTERM change no bit, and what fine-tuning starts from."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.context import StepContext
from components.pretrain.config import PretrainConfig
from components.sft.config import SftConfig
from model.data.artifact import payload_sha256
from model.training.config import TrainingConfig
from tests.tiny import TILE, tiny_config

TRAINING = TrainingConfig(
    learning_rate=1e-3, steps=30, batch_size=4, log_every=1, checkpoint_every=4, threads=1, precision="float32"
)
CHILD = """
import json, sys
from pathlib import Path
from components.context import StepContext
from components.failure import reported
from components.pretrain.config import PretrainConfig
from components.pretrain.step import run
from components.settings import Settings
config, data, output, state = sys.argv[1:]
data = Path(data)
with reported("pretrain", Settings.at(Path("out"))):
    result = run(
        PretrainConfig.model_validate_json(config),
        rows=data / "corpus", heldout=data / "heldout", tokenizer=data / "tokenizer", model=Path(output),
        context=StepContext(state_dir=Path(state)),
    )
print(json.dumps(result.history))
"""


@pytest.fixture(scope="module")
def pretrain_config() -> PretrainConfig:
    """A tiny network on the 28-pixel digits of the shared fixture."""
    config = tiny_config(max_position_embeddings=512)
    vision = config.vision.model_copy(update={"image_size": TILE // 2})
    return PretrainConfig(model=config.model_copy(update={"vision": vision}), training=TRAINING, heldout_rows=2)


def start(config: PretrainConfig, digits: Path, output: Path, state: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, config.model_dump_json(), str(digits), str(output), str(state)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> list[dict[str, float]]:
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors[-2000:]
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def whole(pretrain_config, digits, tmp_path_factory) -> tuple[Path, list[dict[str, float]]]:
    """Model directory and history of a run that nobody disturbed."""
    directory = tmp_path_factory.mktemp("whole")
    return directory / "model", finish(start(pretrain_config, digits, directory / "model", directory / "state"))


def newest_checkpoint(state: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in state.glob("*/checkpoint-*")), default=0)


def interrupt(process: subprocess.Popen[str], number: int, state: Path, after: int) -> tuple[int, str]:
    """Send a signal when a checkpoint of step ``after`` or later is there; exit status and what was said."""
    until = time.monotonic() + 200
    while newest_checkpoint(state) < after:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_neither_kill_9_nor_sigterm_changes_a_bit(pretrain_config, digits, whole, tmp_path):
    state, output = tmp_path / "state", tmp_path / "model"
    interrupt(start(pretrain_config, digits, output, state), signal.SIGKILL, state, after=8)
    status, errors = interrupt(start(pretrain_config, digits, output, state), signal.SIGTERM, state, after=16)
    assert status == 143
    (line,) = [line for line in errors.splitlines() if line.startswith("fovea:")]
    assert f"stopped after step {newest_checkpoint(state)}" in line, "the step it stopped at is the one it kept"
    assert "to continue: fovea run" in line and "Traceback" not in errors
    assert not output.exists()
    history = finish(start(pretrain_config, digits, output, state))
    assert history == whole[1]
    assert payload_sha256(output) == payload_sha256(whole[0])


def test_fine_tuning_starts_from_the_given_weights_or_from_new_ones(whole, digits, tmp_path):
    from components.sft.step import run

    first_loss = {}
    for init in ("pretrained", "random"):
        config = SftConfig(training=TRAINING.model_copy(update={"steps": 2}), init=init, heldout_rows=1)
        context = StepContext(state_dir=tmp_path / init)
        data = {"rows": digits / "corpus", "heldout": digits / "heldout", "init": whole[0]}
        result = run(config, **data, model=tmp_path / f"{init}-model", context=context)
        first_loss[init] = result.history[0]["loss"]
        assert result.numbers["tokens"] > 0
        assert set(result.heldout) == {"transcribe", "read", "count", "maximum", "locate"}
    assert first_loss["pretrained"] < first_loss["random"] - 1, "what pre-training learned is there at the start"
