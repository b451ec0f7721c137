"""Steps as several processes: one result, one line for a mistake, time for a checkpoint, and nobody left behind.

torchrun, the processes and the signals are real; the step is a toy in a copy of the rooms, and tracking writes nothing.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from components.context import StepResult
from components.launcher import InThisProcess, RankFailed, StepCall, ranks_of
from components.pretrain.config import PretrainConfig
from components.rank import _require_devices
from components.sft.config import SftConfig
from components.torchrun import AGENT, RESULT, Torchrun, _outcome, outcome_file
from model.data.errors import InputError
from model.training.config import TrainingConfig
from model.training.stopping import Stopped
from tests.repository_copy import processes_with
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[2]
CONFIG = """
    from model.config import Section
    from model.training.config import TrainingConfig

    class ToyConfig(Section):
        training: TrainingConfig
        behaviour: str = ""
"""
STEP = """
    import os, time
    from pathlib import Path
    from components.context import FamilyScore, StepResult
    from model.data.errors import InputError
    from model.training import stopping

    def run(config, *, source: Path, model: Path, context):
        print(f"rank {context.rank} of {context.ranks} starts", flush=True)
        mark = context.state_dir / "toy"
        if config.behaviour == "mistake":
            if context.rank == 1:
                raise InputError("row 3: no answer")
            time.sleep(600)
        with stopping.watch():
            for step in range(1, 5):
                if mark.exists():
                    break
                (context.state_dir / f"rank-{context.rank}").touch()
                while not stopping.stop_requested():
                    time.sleep(0.02)
                if context.rank == 0:
                    mark.write_text(str(step))
                raise stopping.Stopped(f"stopped after step {step} of 4, a checkpoint is written")
        context.progress("training", 4, 4)
        context.metrics({"step": 4, "loss": 0.5})
        if context.rank == 0:
            model.mkdir()
            text = source.joinpath("rows").read_text()
            (model / "weights").write_text(f"{text} from rank {context.rank} after {mark.read_text()}")
        scores = {"read": FamilyScore(0.5, 0.4, 0.6, 10, 0.1)}
        return StepResult({"loss": 0.1 + 0.2}, [{"step": 4, "loss": 0.5}], scores, {"rank": context.rank})
"""
DRIVER = """
import sys
from pathlib import Path
from components import runner
runner.track = lambda record, uri: {"run_id": "r"}
result = runner.run_step("toy", sys.argv[1], {"source": sys.argv[2]}, {"model": sys.argv[3]})
print(result)
"""


def training(processes: int = 2) -> TrainingConfig:
    return TrainingConfig(learning_rate=1e-3, steps=4, batch_size=4, processes=processes, precision="float32")


@pytest.fixture(scope="module")
def rooms(tmp_path_factory) -> Path:
    """A copy of the rooms with one step more."""
    copy = tmp_path_factory.mktemp("rooms")
    for room in ("model", "components", "requirements"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "components/toy").mkdir()
    for name, text in {"__init__": "", "config": CONFIG, "step": STEP}.items():
        (copy / f"components/toy/{name}.py").write_text(textwrap.dedent(text))
    return copy


class Place:
    """Where one test runs the toy step, in processes that carry the path of the place in their environment."""

    def __init__(self, rooms: Path, root: Path) -> None:
        self.root, self.model, self.run_dir = root, root / "model", root / "run"
        self.run_dir.mkdir()
        (root / "source").mkdir()
        (root / "source/rows").write_text("rows")
        self.environment = os.environ | {
            "PYTHONPATH": str(rooms),
            "PYTHONSAFEPATH": "1",
            "FOVEA_OUT": str(root / "out"),
            "FOVEA_RUN_DIR": str(self.run_dir),
            "FOVEA_RESUME": "fovea run --profile toy",
        }

    def start(self, behaviour: str = "") -> subprocess.Popen:
        config = json.dumps({"training": training().model_dump(mode="json"), "behaviour": behaviour})
        command = [sys.executable, "-c", DRIVER, config, str(self.root / "source"), str(self.model)]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_for_ranks(self) -> None:
        deadline = time.monotonic() + 120
        while len(list(self.root.glob("out/state/*/rank-*"))) < 2:
            assert time.monotonic() < deadline, "the ranks never came"
            time.sleep(0.02)

    def nobody_left(self, seconds: float = 10) -> bool:
        deadline = time.monotonic() + seconds
        while processes_with(str(self.root)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return processes_with(str(self.root)) == []


@pytest.fixture
def place(rooms, tmp_path) -> Place:
    return Place(rooms, tmp_path)


def said(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("fovea:")]


def test_sigterm_gives_the_ranks_time_for_a_checkpoint_and_the_same_command_continues(place):
    first = place.start()
    place.wait_for_ranks()
    first.send_signal(signal.SIGTERM)
    out, errors = first.communicate(timeout=120)
    assert first.returncode == 143
    line = "stopped after step 1 of 4, a checkpoint is written; to continue: fovea run --profile toy"
    assert said(errors) == [f"fovea: toy: {line}"]
    assert "Traceback" not in errors + out
    assert place.nobody_left() and not place.model.exists()

    second = place.start()
    out, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    assert (place.model / "weights").read_text() == "rows from rank 0 after 1"
    assert "'loss': 0.30000000000000004" in out and "values={'rank': 0}" in out and "FamilyScore(score=0.5" in out
    assert "rank 0 of 2 starts" in out and "rank 1" not in out, "one rank speaks"
    assert list((place.root / "out/state").iterdir()) == []
    (record,) = [json.loads(line) for line in (place.run_dir / "training.jsonl").read_text().splitlines()]
    assert (record["task"], record["step"], record["loss"]) == ("toy", 4, 0.5), "one rank writes"
    assert json.loads((place.run_dir / "progress.json").read_text())["label"] == "training"


def test_a_mistake_of_one_rank_is_one_line_and_ends_the_others(place):
    child = place.start("mistake")
    out, errors = child.communicate(timeout=120)
    assert child.returncode == 1
    assert errors.splitlines() == ["fovea: toy: row 3: no answer"]
    assert "Traceback" not in out
    assert place.nobody_left()
    assert json.loads((place.run_dir / "failure.json").read_text())["error"] == "row 3: no answer"


def test_kill_9_of_the_launching_process_ends_every_rank(place):
    child = place.start()
    place.wait_for_ranks()
    assert len(processes_with(str(place.root))) == 4, "launcher, agent, two ranks"
    child.kill()
    child.communicate(timeout=30)
    assert place.nobody_left()


def test_a_step_has_the_number_of_processes_that_its_training_names():
    assert ranks_of("sft", SftConfig(training=training(4))) == 4
    assert ranks_of("pretrain", PretrainConfig(init_from="somewhere")) == 1
    both = {"model": tiny_config(), "warmup": training(1), "training": training(8)}
    with pytest.raises(InputError, match=r"pretrain: warmup.processes is 1, training.processes is 8; "):
        ranks_of("pretrain", PretrainConfig(**both))


def call(tmp_path: Path, **changes) -> StepCall:
    paths = {"inputs": {}, "outputs": {}, "published": {}}
    return StepCall("sft", SftConfig(training=training()), **paths, state_dir=tmp_path, **changes)


def test_a_launcher_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(ValueError, match="2 ranks"):
        InThisProcess().run(call(tmp_path), 2)
    with pytest.raises(ValueError, match="registry"):
        Torchrun().run(call(tmp_path, registry=object()), 2)


def leave(scratch: Path, ended: dict[int, int] | None = None, **outcomes: tuple[str, str, float]) -> None:
    """What the ranks and the agent would leave."""
    for name, (kind, message, when) in outcomes.items():
        said = {"kind": kind, "message": message, "time": when, "traceback": f"Traceback of {message}"}
        outcome_file(scratch, int(name[-1])).write_text(json.dumps(said))
    if ended is not None:
        (scratch / AGENT).write_text(json.dumps(ended))


def test_what_a_user_did_wrong_explains_what_broke_after_it(tmp_path):
    leave(tmp_path, rank0=("bug", "RuntimeError: connection closed by peer", 1.0), rank1=("mistake", "row 3", 2.0))
    with pytest.raises(InputError, match=r"^row 3$"):
        _outcome(tmp_path, 2, 1)


def test_the_first_bug_is_shown_with_its_traceback(tmp_path):
    leave(tmp_path, {1: 1}, rank0=("bug", "RuntimeError: connection closed", 2.0), rank1=("bug", "KeyError: 'x'", 1.0))
    with pytest.raises(RankFailed, match="rank 1: KeyError: 'x'") as caught:
        _outcome(tmp_path, 2, 1)
    assert "Traceback of KeyError" in str(caught.value.__cause__)


def test_a_killed_rank_explains_the_broken_connection_of_the_others(tmp_path):
    leave(tmp_path, {1: -9}, rank0=("bug", "RuntimeError: connection closed by peer", 1.0))
    with pytest.raises(RankFailed, match="rank 1 was killed by SIGKILL"):
        _outcome(tmp_path, 2, 1)


def test_ranks_that_were_stopped_before_they_trained_are_stopped(tmp_path):
    with pytest.raises(Stopped, match="stopped"):
        _outcome(tmp_path, 2, 143)
    leave(tmp_path, rank0=("stopped", "stopped after step 2 of 9", 1.0))
    with pytest.raises(Stopped, match="step 2 of 9"):
        _outcome(tmp_path, 2, 143)


def test_torchrun_that_fails_itself_is_shown(tmp_path):
    (tmp_path / "torchrun.log").write_text("The port is taken\n")
    with pytest.raises(RankFailed, match="torchrun ended with status 1") as caught:
        _outcome(tmp_path, 2, 1)
    assert "The port is taken" in str(caught.value.__cause__)


def test_the_result_of_the_first_rank_is_the_steps(tmp_path):
    record = {"numbers": {"loss": 0.1}, "history": [{"step": 1, "loss": 0.1}], "heldout": {}, "values": {}}
    (tmp_path / RESULT).write_text(json.dumps(record))
    assert _outcome(tmp_path, 2, 0) == StepResult({"loss": 0.1}, [{"step": 1, "loss": 0.1}])


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"training.processes is 2, and this machine has 1 GPUs"):
        _require_devices("collect")
