"""Where a step finds its surroundings: read once from the environment, handed down to child processes."""

import os
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Settings:
    """The surroundings of a run. Paths are absolute.

    Attributes:
        out: everything that is written lies below it (FOVEA_OUT, ``out`` by default).
        store: finished outputs by key (FOVEA_STORE).
        state_root: what running steps keep to survive a kill (FOVEA_STATE_ROOT).
        tracking_uri: MLflow's sqlite file below ``out``, or any server (MLFLOW_TRACKING_URI).
        profile: name of the profile, for tags (FOVEA_PROFILE).
        run_dir: progress, steps, failure and log of this pipeline run; None outside one (FOVEA_RUN_DIR).
        run_id: of this pipeline run (FOVEA_RUN_ID).
        resume: the command that continues after a failure (FOVEA_RESUME).
        runner_pid: the process that a step must not outlive; None where nobody watches (FOVEA_RUNNER_PID).
    """

    out: Path
    store: Path
    state_root: Path
    tracking_uri: str
    profile: str = ""
    run_dir: Path | None = None
    run_id: str = ""
    resume: str = ""
    runner_pid: int | None = None

    @classmethod
    def at(cls, out: Path) -> "Settings":
        """Everything below ``out``, whatever the environment says."""
        out = out.absolute()
        return cls(out, out / "store", out / "state", f"sqlite:///{out}/mlflow/mlflow.db")

    @classmethod
    def from_environment(cls) -> "Settings":
        """The settings of this process."""
        read = os.environ.get
        default = cls.at(Path(read("FOVEA_OUT") or "out"))
        run_dir, runner_pid = read("FOVEA_RUN_DIR"), read("FOVEA_RUNNER_PID")
        return cls(
            out=default.out,
            store=Path(read("FOVEA_STORE") or default.store).absolute(),
            state_root=Path(read("FOVEA_STATE_ROOT") or default.state_root).absolute(),
            tracking_uri=read("MLFLOW_TRACKING_URI") or default.tracking_uri,
            profile=read("FOVEA_PROFILE", ""),
            run_dir=Path(run_dir).absolute() if run_dir else None,
            run_id=read("FOVEA_RUN_ID", ""),
            resume=read("FOVEA_RESUME", ""),
            runner_pid=int(runner_pid) if runner_pid else None,
        )

    def environment(self) -> dict[str, str]:
        """The variables that make a child process read these settings."""
        variables = {
            "FOVEA_OUT": self.out,
            "FOVEA_STORE": self.store,
            "FOVEA_STATE_ROOT": self.state_root,
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "FOVEA_PROFILE": self.profile,
            "FOVEA_RUN_DIR": self.run_dir or "",
            "FOVEA_RUN_ID": self.run_id,
            "FOVEA_RESUME": self.resume,
            "FOVEA_RUNNER_PID": self.runner_pid or "",
        }
        return {name: str(value) for name, value in variables.items()}
